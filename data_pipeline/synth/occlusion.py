"""Ambient occlusion of the template head, by Warp ray casts: which crevices see little sky."""

# mypy: ignore-errors
# ruff: noqa: UP018 (Warp needs float() to declare a variable that a loop changes)
from __future__ import annotations

import numpy as np

from data_pipeline.synth.quiet_warp import wp

wp.set_module_options({"enable_backward": False})

RAYS = 96
REACH = 0.05  # metres: occluders further away do not count


@wp.kernel
def _cast(
    mesh: wp.uint64,
    points: wp.array(dtype=wp.vec3),
    normals: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    reach: float,
    out: wp.array(dtype=float),
):
    v = wp.tid()
    seen = float(0.0)
    total = float(0.0)
    start = points[v] + normals[v] * 0.001
    for k in range(directions.shape[0]):
        d = directions[k]
        cosine = wp.dot(d, normals[v])
        if cosine > 0.05:
            total += cosine
            query = wp.mesh_query_ray(mesh, start, d, reach)
            if not query.result:
                seen += cosine
    out[v] = seen / wp.max(total, 1.0e-6)


def sky_share(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Cosine-weighted share of the hemisphere each vertex sees.

    Args:
        points: [V, 3] metres.
        triangles: [F, 3] the occluding surface, over the same vertices.

    Returns:
        [V] from 0 (shut in) to 1 (open).
    """
    corners = points[triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], faces)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    k = np.arange(RAYS) + 0.5
    height, turn = 1 - 2 * k / RAYS, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - height**2)
    sphere = np.stack([radius * np.cos(turn), radius * np.sin(turn), height], 1)
    arrays = [
        wp.array(a.astype(np.float32), dtype=wp.vec3, device="cpu")
        for a in (points, normals, sphere)
    ]
    index = wp.array(triangles.ravel().astype(np.int32), dtype=wp.int32, device="cpu")
    mesh = wp.Mesh(points=arrays[0], indices=index)
    out = wp.empty(len(points), dtype=wp.float32, device="cpu")
    wp.launch(_cast, dim=len(points), inputs=[mesh.id, *arrays, REACH, out], device="cpu")
    return out.numpy()
