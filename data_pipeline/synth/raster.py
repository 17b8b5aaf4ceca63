"""Warp kernels that turn posed head meshes into visibility buffers: normals, depth, coverage.

Each CPU thread index owns one face and walks its triangles in order, so the result does not
depend on scheduling. Warp brings its own compiler; none is needed on the machine.
"""

# mypy: ignore-errors
# ruff: noqa: UP018 (Warp needs float() to declare a variable that a loop changes)
from __future__ import annotations

from data_pipeline.synth.quiet_warp import wp

wp.set_module_options({"enable_backward": False})

TWO_SIDED_FROM = wp.constant(6)  # materials from here on show both sides (lashes and outwards)
MASKED_FROM = wp.constant(8)  # materials from here on are cut out by the vertex mask (hair)


@wp.kernel
def vertex_normals(
    points: wp.array2d(dtype=wp.vec3),
    triangles: wp.array(dtype=wp.vec3i),
    normals: wp.array2d(dtype=wp.vec3),
):
    """Area-weighted vertex normals [N, V] of points [N, V]."""
    n = wp.tid()
    for v in range(points.shape[1]):
        normals[n, v] = wp.vec3(0.0, 0.0, 0.0)
    for t in range(triangles.shape[0]):
        i = triangles[t]
        a = points[n, i[0]]
        normal = wp.cross(points[n, i[1]] - a, points[n, i[2]] - a)
        normals[n, i[0]] = normals[n, i[0]] + normal
        normals[n, i[1]] = normals[n, i[1]] + normal
        normals[n, i[2]] = normals[n, i[2]] + normal
    for v in range(points.shape[1]):
        normals[n, v] = wp.normalize(normals[n, v])


@wp.func
def _edge(a: wp.vec3, b: wp.vec3, x: float, y: float):
    return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])


@wp.func
def strand_noise(p: wp.vec3, seed: int, frequency: float):
    """Noise in [-1, 1] that runs along the head's meridians: looks like strands of hair."""
    angle = wp.atan2(p[0], -(p[1] + 0.03))
    state = wp.rand_init(seed)
    return wp.noise(state, wp.vec2(angle * frequency, p[2] * 30.0))


@wp.func
def _fragment(
    n: int,
    t: int,
    x: int,
    y: int,
    i: wp.vec3i,
    a: wp.vec3,
    b: wp.vec3,
    c: wp.vec3,
    area: float,
    hairy: bool,
    mask: wp.array2d(dtype=float),
    texture: wp.array(dtype=wp.vec3),
    seed: int,
    depth: wp.array3d(dtype=float),
    hit: wp.array3d(dtype=int),
    bary: wp.array3d(dtype=wp.vec2),
):
    """Record a triangle at one sample if it covers it, is nearest so far and is not cut out."""
    px = float(x) + 0.5
    py = float(y) + 0.5
    wa = _edge(b, c, px, py) / area
    wb = _edge(c, a, px, py) / area
    wc = 1.0 - wa - wb
    if wa >= 0.0 and wb >= 0.0 and wc >= 0.0:
        za = wa / a[2]
        zb = wb / b[2]
        zc = wc / c[2]
        z = 1.0 / (za + zb + zc)
        if z < depth[n, y, x]:
            u = za * z
            v = zb * z
            w = zc * z
            shown = bool(True)
            if hairy:
                m = u * mask[n, i[0]] + v * mask[n, i[1]] + w * mask[n, i[2]]
                if m < 0.35:
                    p = u * texture[i[0]] + v * texture[i[1]] + w * texture[i[2]]
                    shown = m + 0.35 * strand_noise(p, seed, 40.0) > 0.0
            if shown:
                depth[n, y, x] = z
                hit[n, y, x] = t
                bary[n, y, x] = wp.vec2(u, v)


@wp.kernel
def rasterise(
    screen: wp.array2d(dtype=wp.vec3),
    triangles: wp.array(dtype=wp.vec3i),
    materials: wp.array(dtype=int),
    enabled: wp.array2d(dtype=int),
    mask: wp.array2d(dtype=float),
    texture: wp.array(dtype=wp.vec3),
    seeds: wp.array(dtype=int),
    depth: wp.array3d(dtype=float),
    hit: wp.array3d(dtype=int),
    bary: wp.array3d(dtype=wp.vec2),
):
    """Fill depth, triangle index (-1 = none) and barycentrics [N, H, W].

    Args:
        screen: [N, V] pixel x, pixel y, distance along the camera's axis.
        enabled: [N, M] which materials a face shows.
        mask: [N, V] cut-out value of the hair materials: shown where it is above zero.
        texture: [V] position on the template, which fixes the noise of the hair's edge.
    """
    n = wp.tid()
    height = depth.shape[1]
    width = depth.shape[2]
    for y in range(height):
        for x in range(width):
            depth[n, y, x] = 1.0e9
            hit[n, y, x] = -1
    for t in range(triangles.shape[0]):
        material = materials[t]
        hairy = material >= MASKED_FROM
        if enabled[n, material] == 1:
            i = triangles[t]
            a = screen[n, i[0]]
            b = screen[n, i[1]]
            c = screen[n, i[2]]
            area = _edge(a, b, c[0], c[1])
            if (area < -1.0e-6 or (material >= TWO_SIDED_FROM and area > 1.0e-6)) and wp.min(
                a[2], wp.min(b[2], c[2])
            ) > 0.01:
                x0 = wp.max(int(wp.ceil(wp.min(a[0], wp.min(b[0], c[0])) - 0.5)), 0)
                x1 = wp.min(int(wp.floor(wp.max(a[0], wp.max(b[0], c[0])) - 0.5)), width - 1)
                y0 = wp.max(int(wp.ceil(wp.min(a[1], wp.min(b[1], c[1])) - 0.5)), 0)
                y1 = wp.min(int(wp.floor(wp.max(a[1], wp.max(b[1], c[1])) - 0.5)), height - 1)
                for y in range(y0, y1 + 1):
                    for x in range(x0, x1 + 1):
                        _fragment(
                            n, t, x, y, i, a, b, c, area, hairy, mask, texture, seeds[n],
                            depth, hit, bary,
                        )  # fmt: skip
