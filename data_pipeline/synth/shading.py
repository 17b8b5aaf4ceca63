"""Warp kernels that colour what :mod:`raster` saw: skin, eyes, mouth, hair, light, background.

All colours are linear RGB. Light and normals live in the frame of the unposed head, so bump
gradients measured on the template need no further turning.
"""

# mypy: ignore-errors
# ruff: noqa: UP018 (Warp needs float() to declare a variable that a loop changes)
from __future__ import annotations

from data_pipeline.synth.quiet_warp import wp
from data_pipeline.synth.raster import strand_noise

wp.set_module_options({"enable_backward": False})

MAP_X0 = wp.constant(-0.085)  # the planar face map spans x and z of the template, metres
MAP_X1 = wp.constant(0.085)
MAP_Z0 = wp.constant(0.60)
MAP_Z1 = wp.constant(0.86)
IRIS_RADIUS = wp.constant(0.0063)
PUPIL_RADIUS = wp.constant(0.0026)


@wp.struct
class Look:
    """Everything the shader knows about one face; colours linear RGB."""

    rotation: wp.mat33
    light: wp.vec3
    light_colour: wp.vec3
    sky: wp.vec3
    ground: wp.vec3
    view: wp.vec3
    skin: wp.vec3
    lips: wp.vec3
    lip_mix: float
    blush: wp.vec3
    hair: wp.vec3
    brow: wp.vec3
    iris: wp.vec3
    cloth: wp.vec3
    frame: wp.vec3
    hat: wp.vec3
    collar: float
    oil: float
    curl: float
    exposure: float
    noise: float
    seed: int


@wp.func
def _map4(field: wp.array3d(dtype=wp.vec4), n: int, x: float, z: float):
    h = field.shape[1]
    w = field.shape[2]
    fx = (x - MAP_X0) / (MAP_X1 - MAP_X0) * float(w) - 0.5
    fz = (z - MAP_Z0) / (MAP_Z1 - MAP_Z0) * float(h) - 0.5
    fx = wp.clamp(fx, 0.0, float(w) - 1.001)
    fz = wp.clamp(fz, 0.0, float(h) - 1.001)
    ix = int(fx)
    iz = int(fz)
    ax = fx - float(ix)
    az = fz - float(iz)
    low = field[n, iz, ix] * (1.0 - ax) + field[n, iz, ix + 1] * ax
    high = field[n, iz + 1, ix] * (1.0 - ax) + field[n, iz + 1, ix + 1] * ax
    return low * (1.0 - az) + high * az


@wp.func
def _image1(image: wp.array2d(dtype=float), fx: float, fy: float):
    h = image.shape[0]
    w = image.shape[1]
    x = wp.clamp(fx * float(w) - 0.5, 0.0, float(w) - 1.001)
    y = wp.clamp(fy * float(h) - 0.5, 0.0, float(h) - 1.001)
    ix = int(x)
    iy = int(y)
    ax = x - float(ix)
    ay = y - float(iy)
    low = image[iy, ix] * (1.0 - ax) + image[iy, ix + 1] * ax
    high = image[iy + 1, ix] * (1.0 - ax) + image[iy + 1, ix + 1] * ax
    return low * (1.0 - ay) + high * ay


@wp.func
def _image3(image: wp.array3d(dtype=wp.vec3), n: int, fx: float, fy: float):
    h = image.shape[1]
    w = image.shape[2]
    x = wp.clamp(fx * float(w) - 0.5, 0.0, float(w) - 1.001)
    y = wp.clamp(fy * float(h) - 0.5, 0.0, float(h) - 1.001)
    ix = int(x)
    iy = int(y)
    ax = x - float(ix)
    ay = y - float(iy)
    low = image[n, iy, ix] * (1.0 - ax) + image[n, iy, ix + 1] * ax
    high = image[n, iy + 1, ix] * (1.0 - ax) + image[n, iy + 1, ix + 1] * ax
    return low * (1.0 - ay) + high * ay


@wp.func
def _mix(a: wp.vec3, b: wp.vec3, t: float):
    return a * (1.0 - t) + b * t


@wp.func
def _times(a: wp.vec3, b: wp.vec3):
    return wp.vec3(a[0] * b[0], a[1] * b[1], a[2] * b[2])


@wp.func
def _smooth(low: float, high: float, x: float):
    t = wp.clamp((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@wp.func
def _lit(albedo: wp.vec3, normal: wp.vec3, look: Look, wrap: float, occlusion: float, lit: float):
    """Wrapped diffuse light plus a sky and ground ambient; wrap lets red bleed as skin does."""
    cosine = wp.dot(normal, look.light)
    red = wp.max((cosine + wrap) / (1.0 + wrap), 0.0)
    rest = wp.max((cosine + 0.4 * wrap) / (1.0 + 0.4 * wrap), 0.0)
    key = _times(wp.vec3(red, rest, rest), look.light_colour) * lit
    up = 0.5 + 0.5 * normal[2]
    ambient = _mix(look.ground, look.sky, up) * occlusion
    return _times(albedo, key + ambient)


@wp.func
def _gloss(normal: wp.vec3, look: Look, power: float):
    half = wp.normalize(look.light + look.view)
    return wp.pow(wp.max(wp.dot(normal, half), 0.0), power)


@wp.func
def _skin(
    p: wp.vec3,
    n0: wp.vec3,
    uv: wp.vec2,
    n: int,
    look: Look,
    occlusion: float,
    lit: float,
    paint: wp.array3d(dtype=wp.vec4),
    relief: wp.array3d(dtype=wp.vec4),
    lips: wp.array2d(dtype=float),
    lips_box: wp.vec4,
):
    normal = n0
    albedo = look.skin
    gloss = look.oil
    if p[1] < -0.02 and p[2] > 0.601:
        front = _smooth(-0.03, -0.07, p[1])
        bump = _map4(relief, n, p[0], p[2])
        albedo = albedo * (1.0 + 0.05 * bump[3] * front)
        slope = wp.vec3(bump[0], 0.0, bump[1]) * front
        normal = wp.normalize(n0 - (slope - n0 * wp.dot(slope, n0)))
        layer = _map4(paint, n, p[0], p[2]) * front
        albedo = _mix(albedo, _times(albedo, look.blush), layer[1])
        albedo = albedo * (1.0 - 0.75 * layer[2]) * (1.0 - 0.35 * bump[2] * front)
        lx = (uv[0] - lips_box[0]) / (lips_box[2] - lips_box[0])
        ly = (lips_box[3] - uv[1]) / (lips_box[3] - lips_box[1])
        if lx > 0.0 and lx < 1.0 and ly > 0.0 and ly < 1.0:
            mouth = _image1(lips, lx, ly)
            albedo = _mix(albedo, look.lips, mouth * look.lip_mix)
            gloss = gloss + 0.25 * mouth
        albedo = _mix(albedo, look.brow, layer[0])
        albedo = _mix(albedo, look.hair * 0.8, layer[3])
        gloss = gloss * (1.0 - 0.8 * wp.max(layer[0], layer[3]))
    fabric = 0.576 + look.collar - 0.35 * wp.max(-p[1] - 0.02, 0.0) + 0.08 * wp.abs(p[0])
    result = wp.vec3(0.0, 0.0, 0.0)
    if p[2] < fabric:
        weave = 1.0 + 0.08 * wp.sin(p[0] * 1500.0) * wp.sin(p[2] * 1500.0)
        result = _lit(look.cloth * weave, n0, look, 0.0, occlusion, lit)
    else:
        shine = 0.22 * gloss * _gloss(normal, look, 18.0) + 0.10 * gloss * _gloss(
            normal, look, 60.0
        )
        rim = wp.pow(1.0 - wp.max(wp.dot(normal, look.view), 0.0), 4.0) * 0.10
        result = _lit(albedo, normal, look, 0.35, occlusion, lit)
        result = result + look.light_colour * shine * lit + look.sky * rim * occlusion
    return result


@wp.func
def _eye(p: wp.vec3, normal: wp.vec3, centre: wp.vec3, look: Look, lit: float):
    d = p - centre
    radius = wp.sqrt(d[0] * d[0] + d[2] * d[2])
    state = wp.rand_init(look.seed + 7)
    white = wp.vec3(0.78, 0.74, 0.70)
    white = _mix(white, wp.vec3(0.62, 0.36, 0.30), _smooth(0.008, 0.0135, radius) * 0.5)
    colour = white
    if d[1] < 0.0:
        angle = wp.atan2(d[2], d[0])
        fibre = 0.8 + 0.4 * wp.noise(state, wp.vec2(angle * 9.0, radius * 500.0))
        iris = look.iris * fibre * (1.25 - 0.5 * _smooth(0.002, 0.006, radius))
        colour = _mix(iris, white, _smooth(IRIS_RADIUS - 0.0006, IRIS_RADIUS + 0.0006, radius))
        ring = 1.0 - _smooth(0.0, 0.0011, wp.abs(radius - IRIS_RADIUS))
        colour = colour * (1.0 - 0.65 * ring)
        pupil = 1.0 - _smooth(PUPIL_RADIUS - 0.0005, PUPIL_RADIUS + 0.0005, radius)
        colour = _mix(colour, wp.vec3(0.006, 0.005, 0.005), pupil)
    shade = 1.0 - 0.45 * _smooth(0.001, 0.008, d[2])  # the upper lid's shadow
    result = _lit(colour, normal, look, 0.25, 0.9 * shade, lit * shade)
    return result + look.light_colour * (0.9 * _gloss(normal, look, 220.0) * lit)


@wp.func
def _hair(p: wp.vec3, normal: wp.vec3, base: wp.vec3, look: Look, occlusion: float, lit: float):
    strand = strand_noise(p, look.seed + 3, 55.0 - 25.0 * look.curl)
    fine = strand_noise(p, look.seed + 5, 130.0)
    state = wp.rand_init(look.seed + 9)
    lump = float(0.0)
    if look.curl > 0.0:
        lump = wp.noise(state, p * 120.0) * look.curl
    colour = base * wp.max(1.0 + 0.45 * strand + 0.35 * fine + 0.9 * lump, 0.15)
    tangent = wp.normalize(wp.vec3(0.2 * strand, 0.1, -1.0) + normal * 0.4 * normal[2])
    half = wp.normalize(look.light + look.view)
    along = wp.dot(tangent, half)
    shine = wp.pow(wp.sqrt(wp.max(1.0 - along * along, 0.0)), 40.0) * (0.6 + 0.8 * fine)
    result = _lit(colour, normal, look, 0.2, occlusion, lit)
    glow = _times(look.light_colour, base * 0.5 + wp.vec3(0.02, 0.02, 0.02))
    return result + glow * wp.max(shine, 0.0) * lit * wp.max(wp.dot(normal, look.light) + 0.3, 0.0)


@wp.func
def _shadow(shadow: wp.array3d(dtype=float), n: int, p: wp.vec3, bias: float):
    """Share of light that reaches the point, from 9 taps of the shadow map (light coordinates)."""
    size = shadow.shape[1]
    total = float(0.0)
    for dy in range(3):
        for dx in range(3):
            x = wp.clamp(int(p[0] + 1.3 * float(dx - 1)), 0, size - 1)
            y = wp.clamp(int(p[1] + 1.3 * float(dy - 1)), 0, size - 1)
            if shadow[n, y, x] > p[2] - bias:
                total += 1.0
    return total / 9.0


@wp.func
def _other(
    material: int,
    p: wp.vec3,
    normal: wp.vec3,
    look: Look,
    occlusion: float,
    lit: float,
    eye_left: wp.vec3,
    eye_right: wp.vec3,
):
    """Colour of everything but skin, by material (see ``headmodel`` and ``scene``)."""
    colour = wp.vec3(0.0, 0.0, 0.0)
    if material == 1:
        colour = _eye(p, normal, eye_left, look, 0.25 + 0.75 * lit)
    elif material == 2:
        colour = _eye(p, normal, eye_right, look, 0.25 + 0.75 * lit)
    elif material == 3:
        inside = _smooth(-0.115, -0.147, p[1])
        teeth = wp.vec3(0.74, 0.68, 0.56) * inside
        colour = _lit(teeth, normal, look, 0.3, 0.75, 0.3 + 0.6 * lit)
        colour = colour + look.light_colour * 0.15 * _gloss(normal, look, 40.0) * lit
    elif material == 4:
        inside = _smooth(-0.06, -0.13, p[1])
        colour = _lit(wp.vec3(0.42, 0.13, 0.12) * inside, normal, look, 0.2, 0.5, 0.2 + 0.6 * lit)
    elif material == 5:
        colour = _lit(wp.vec3(0.06, 0.012, 0.012), normal, look, 0.2, 0.4, 0.2 * lit)
    elif material == 6:
        colour = _lit(_mix(look.brow, wp.vec3(0.02, 0.015, 0.01), 0.8), normal, look, 0.2, 0.6, lit)
    elif material == 7:
        colour = _lit(look.frame, normal, look, 0.0, 0.9, lit)
        colour = colour + look.light_colour * 0.3 * _gloss(normal, look, 50.0) * lit
    elif material == 10:
        rib = 1.0 + 0.18 * wp.sin(wp.atan2(p[0], -p[1]) * 110.0)
        colour = _lit(look.hat * rib, normal, look, 0.1, occlusion, lit)
    else:
        colour = _hair(p, normal, look.hair, look, occlusion, lit)
    return colour


@wp.kernel
def shade(
    hit: wp.array3d(dtype=int),
    bary: wp.array3d(dtype=wp.vec2),
    triangles: wp.array(dtype=wp.vec3i),
    materials: wp.array(dtype=int),
    texture: wp.array(dtype=wp.vec3),
    uvs: wp.array2d(dtype=wp.vec2),
    occlusions: wp.array(dtype=float),
    normals: wp.array2d(dtype=wp.vec3),
    in_light: wp.array2d(dtype=wp.vec3),
    shadow: wp.array3d(dtype=float),
    looks: wp.array(dtype=Look),
    paint: wp.array3d(dtype=wp.vec4),
    relief: wp.array3d(dtype=wp.vec4),
    background: wp.array3d(dtype=wp.vec3),
    lips: wp.array2d(dtype=float),
    lips_box: wp.vec4,
    eye_left: wp.vec3,
    eye_right: wp.vec3,
    out: wp.array3d(dtype=wp.vec3),
):
    """Linear colour [N, H, W] of every sample."""
    n, y, x = wp.tid()
    t = hit[n, y, x]
    look = looks[n]
    if t < 0:
        fx = (float(x) + 0.5) / float(hit.shape[2])
        fy = (float(y) + 0.5) / float(hit.shape[1])
        out[n, y, x] = _image3(background, n, fx, fy)
        return
    i = triangles[t]
    w = bary[n, y, x]
    u = w[0]
    v = w[1]
    q = 1.0 - u - v
    p = texture[i[0]] * u + texture[i[1]] * v + texture[i[2]] * q
    posed = normals[n, i[0]] * u + normals[n, i[1]] * v + normals[n, i[2]] * q
    normal = wp.normalize(wp.transpose(look.rotation) * posed)
    occlusion = occlusions[i[0]] * u + occlusions[i[1]] * v + occlusions[i[2]] * q
    where = in_light[n, i[0]] * u + in_light[n, i[1]] * v + in_light[n, i[2]] * q
    material = materials[t]
    if material >= 6 and wp.dot(normal, look.view) < 0.0:
        normal = -normal
    lit = _shadow(shadow, n, where, 0.006)
    if material == 0:
        uv = uvs[t, 0] * u + uvs[t, 1] * v + uvs[t, 2] * q
        out[n, y, x] = _skin(p, normal, uv, n, look, occlusion, lit, paint, relief, lips, lips_box)
    else:
        out[n, y, x] = _other(material, p, normal, look, occlusion, lit, eye_left, eye_right)


@wp.func
def _encode(value: float):
    """Linear light to sRGB, with a soft shoulder so that highlights do not clip hard."""
    c = wp.max(value, 0.0)
    if c > 0.7:
        c = 0.7 + 0.3 * (1.0 - wp.exp(-(c - 0.7) / 0.3))
    if c <= 0.0031308:
        return 12.92 * c
    return 1.055 * wp.pow(c, 1.0 / 2.4) - 0.055


@wp.kernel
def resolve(
    samples: wp.array3d(dtype=wp.vec3),
    looks: wp.array(dtype=Look),
    factor: int,
    out: wp.array4d(dtype=wp.uint8),
):
    """Average factor x factor samples, expose, add sensor noise, encode as sRGB bytes."""
    n, y, x = wp.tid()
    total = wp.vec3(0.0, 0.0, 0.0)
    for dy in range(factor):
        for dx in range(factor):
            total = total + samples[n, y * factor + dy, x * factor + dx]
    look = looks[n]
    colour = total * (look.exposure / float(factor * factor))
    state = wp.rand_init(look.seed, y * out.shape[2] + x)
    grain = wp.randn(state) * look.noise
    for c in range(3):
        value = _encode(colour[c]) + grain + wp.randn(state) * look.noise * 0.4
        out[n, y, x, c] = wp.uint8(wp.clamp(value * 255.0 + 0.5, 0.0, 255.0))
