"""Compiled kernels of the procedural training data: signed distances, dual-grid targets, sphere tracing.

The only module here that needs numba (the `training` extra); `objects`, `render` and `dataset` import it when they are called.
A part is one row of the float64 [P, 25] table that `objects.ProceduralObject.table` describes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

BOX, BALL, CONE, RING, CUP, TAPER, DOME = range(7)
# Columns of the part table.
KIND, ROTATION, CENTRE, SIZE, ROUND, BOUND, RGB, METALLIC, ROUGHNESS = 0, 1, 10, 13, 18, 19, 20, 23, 24
COLUMNS = 25

_jit = njit(cache=True, fastmath=True, nogil=True)


@_jit
def _cone(rho, z, low, high, half):
    """Capped cone around z: radius `low` at z = -half, `high` at z = half (exact distance)."""
    cap_x = rho - min(rho, low if z < 0 else high)
    cap_z = abs(z) - half
    slope_x, slope_z = high - low, 2 * half
    t = ((high - rho) * slope_x + (half - z) * slope_z) / (slope_x * slope_x + slope_z * slope_z)
    t = min(max(t, 0.0), 1.0)
    side_x, side_z = rho - high + slope_x * t, z - half + slope_z * t
    sign = -1.0 if side_x < 0 and cap_z < 0 else 1.0
    return sign * math.sqrt(min(cap_x * cap_x + cap_z * cap_z, side_x * side_x + side_z * side_z))


@_jit
def _ellipsoid(x, y, z, a, b, c):
    """First-order distance to an ellipsoid, never deeper than its smallest radius."""
    u, v, w = x / a, y / b, z / c
    k0 = math.sqrt(u * u + v * v + w * w)
    u, v, w = u / a, v / b, w / c
    k1 = math.sqrt(u * u + v * v + w * w)
    small = min(a, min(b, c))
    return max(k0 * (k0 - 1) / k1, -small) if k1 > 1e-9 else -small


@_jit
def part_distance(parts, i, px, py, pz):
    """Signed distance of one part (a lower bound outside for CUP, TAPER and DOME)."""
    px, py, pz = px - parts[i, 10], py - parts[i, 11], pz - parts[i, 12]
    x = parts[i, 1] * px + parts[i, 2] * py + parts[i, 3] * pz
    y = parts[i, 4] * px + parts[i, 5] * py + parts[i, 6] * pz
    z = parts[i, 7] * px + parts[i, 8] * py + parts[i, 9] * pz
    kind = int(parts[i, KIND])
    a, b, c, d, e, r = parts[i, 13], parts[i, 14], parts[i, 15], parts[i, 16], parts[i, 17], parts[i, ROUND]
    if kind == BOX:
        x, y, z = abs(x) - a + r, abs(y) - b + r, abs(z) - c + r
        ox, oy, oz = max(x, 0.0), max(y, 0.0), max(z, 0.0)
        return math.sqrt(ox * ox + oy * oy + oz * oz) + min(max(x, max(y, z)), 0.0) - r
    if kind == BALL:
        return _ellipsoid(x, y, z, a, b, c)
    rho = math.sqrt(x * x + y * y)
    if kind == CONE:
        return _cone(rho, z, a - r, b - r, c - r) - r
    if kind == RING:
        return math.sqrt((rho - a) * (rho - a) + z * z) - b
    if kind == CUP:
        return max(_cone(rho, z, a, b, c), -_cone(rho, z - d, a - d, b - d, c))
    if kind == TAPER:  # half sizes (a, b) at the bottom, (c, d) at the top, half height e
        t = (z + e) / (2 * e)
        side_x = (abs(x) - a - (c - a) * t) * 2 * e / math.sqrt(4 * e * e + (c - a) * (c - a))
        side_y = (abs(y) - b - (d - b) * t) * 2 * e / math.sqrt(4 * e * e + (d - b) * (d - b))
        return max(max(side_x, side_y), abs(z) - e)
    return max(_ellipsoid(x, y, z, a, b, c), -z)


@_jit
def nearest(parts, x, y, z):
    """(signed distance of the union, index of the nearest part)."""
    best, which = 1e9, 0
    for i in range(len(parts)):
        dx, dy, dz = x - parts[i, 10], y - parts[i, 11], z - parts[i, 12]
        reach = best + parts[i, BOUND]
        if reach > 0 and dx * dx + dy * dy + dz * dz < reach * reach:
            d = part_distance(parts, i, x, y, z)
            if d < best:
                best, which = d, i
    return best, which


@_jit
def part_normal(parts, i, x, y, z):
    """Outward unit normal of one part by four taps of its distance."""
    h = 5e-4
    d0 = part_distance(parts, i, x + h, y - h, z - h)
    d1 = part_distance(parts, i, x - h, y - h, z + h)
    d2 = part_distance(parts, i, x - h, y + h, z - h)
    d3 = part_distance(parts, i, x + h, y + h, z + h)
    nx, ny, nz = d0 - d1 - d2 + d3, -d0 - d1 + d2 + d3, -d0 + d1 - d2 + d3
    length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
    return nx / length, ny / length, nz / length


@_jit
def corner_distances(parts, grid):
    """Signed distance float32 [grid+1]^3 at the voxel corners; far from the surface only the sign is right."""
    step = 4
    values = np.empty((grid + 1, grid + 1, grid + 1), np.float32)
    far = 1.3 * math.sqrt(3.0) * 0.5 * (step + 1) / grid
    blocks = grid // step + 1
    for bx in range(blocks):
        for by in range(blocks):
            for bz in range(blocks):
                x0, y0, z0 = bx * step, by * step, bz * step
                half = 0.5 * (step - 1)
                d, _ = nearest(parts, (x0 + half) / grid - 0.5, (y0 + half) / grid - 0.5, (z0 + half) / grid - 0.5)
                near = abs(d) < far
                for x in range(x0, min(x0 + step, grid + 1)):
                    for y in range(y0, min(y0 + step, grid + 1)):
                        for z in range(z0, min(z0 + step, grid + 1)):
                            if near:
                                values[x, y, z], _ = nearest(parts, x / grid - 0.5, y / grid - 0.5, z / grid - 0.5)
                            else:
                                values[x, y, z] = d
    return values


@_jit
def _crossing(parts, x, y, z, axis, d0, d1, grid, out):
    """Surface point (in voxels) and normal on the grid edge from corner (x, y, z) along `axis`, written to out[6]."""
    lo, hi = 0.0, 1.0
    t = 0.5
    for _ in range(5):
        t = lo + (hi - lo) * min(max(d0 / (d0 - d1), 0.05), 0.95)
        px = (x + (t if axis == 0 else 0.0)) / grid - 0.5
        py = (y + (t if axis == 1 else 0.0)) / grid - 0.5
        pz = (z + (t if axis == 2 else 0.0)) / grid - 0.5
        d, which = nearest(parts, px, py, pz)
        if (d < 0) == (d0 < 0):
            lo, d0 = t, d
        else:
            hi, d1 = t, d
        if abs(d) < 1e-5:
            break
    out[0], out[1], out[2] = (px + 0.5) * grid, (py + 0.5) * grid, (pz + 0.5) * grid
    out[3], out[4], out[5] = part_normal(parts, which, px, py, pz)


@_jit
def _corners_inside(value, x, y, z):
    """How many of a voxel's eight corners are inside."""
    inside = 0
    for k in range(8):
        inside += value[x + (k & 1), y + (k >> 1 & 1), z + (k >> 2)] < 0
    return inside


@_jit
def _dual_vertex(crossing, found, count, regularisation, voxel, out):
    """Least-squares point of the planes crossing[found[:count]], pulled to their mean, as an offset clamped to the voxel."""
    mean, b, a = np.zeros(3), np.zeros(3), np.zeros((3, 3))
    for k in range(count):
        mean += crossing[found[k], :3] / count
    for k in range(count):
        q = crossing[found[k]]
        plane = q[3] * (q[0] - mean[0]) + q[4] * (q[1] - mean[1]) + q[5] * (q[2] - mean[2])
        for i in range(3):
            b[i] += q[3 + i] * plane
            for j in range(3):
                a[i, j] += q[3 + i] * q[3 + j]
    for i in range(3):
        a[i, i] += regularisation
    det = 0.0
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        det += a[0, i] * (a[1, j] * a[2, k] - a[1, k] * a[2, j])
    for i in range(3):  # Cramer's rule; `a` is symmetric, so its adjugate is its matrix of cofactors
        j, k = (i + 1) % 3, (i + 2) % 3
        step = 0.0
        for c in range(3):
            d, e = (c + 1) % 3, (c + 2) % 3
            step += (a[j, d] * a[k, e] - a[j, e] * a[k, d]) * b[c]
        out[i] = min(max(mean[i] + step / det - voxel[i], 0.0), 1.0)


@_jit
def dual_grid(parts, grid, regularisation):
    """Dual-grid targets of the union: (coords uint8 [N, 3], offset float32 [N, 3], flags bool [N, 3], part int32 [N]);
    see `dataset.dual_grid_targets`."""
    value = corner_distances(parts, grid)
    edge = np.full((3, grid + 1, grid + 1, grid + 1), -1, np.int32)  # row of an edge's crossing
    voxels = 0
    for x, y, z in np.ndindex((grid, grid, grid)):
        voxels += 0 < _corners_inside(value, x, y, z) < 8
    coords = np.empty((voxels, 3), np.uint8)
    offset = np.empty((voxels, 3), np.float32)
    flags = np.zeros((voxels, 3), np.bool_)
    part = np.empty(voxels, np.int32)
    crossing = np.empty((12 * voxels, 6))
    found = np.empty(12, np.int32)
    edges, n = 0, 0
    for x, y, z in np.ndindex((grid, grid, grid)):
        if not 0 < _corners_inside(value, x, y, z) < 8:
            continue
        count = 0
        for axis in range(3):
            for k in range(4):  # the four edges along the axis; the last is the far one, which carries the flag
                u, v = k & 1, k >> 1
                ex, ey, ez = x + (axis != 0) * u, y + (axis == 0) * u + (axis == 2) * v, z + (axis != 2) * v
                d0, d1 = value[ex, ey, ez], value[ex + (axis == 0), ey + (axis == 1), ez + (axis == 2)]
                if (d0 < 0) == (d1 < 0):
                    continue
                if k == 3:
                    flags[n, axis] = True
                row = edge[axis, ex, ey, ez]
                if row < 0:
                    row = edge[axis, ex, ey, ez] = edges
                    _crossing(parts, ex, ey, ez, axis, d0, d1, grid, crossing[row])
                    edges += 1
                found[count] = row
                count += 1
        coords[n, 0], coords[n, 1], coords[n, 2] = x, y, z
        _dual_vertex(crossing, found, count, regularisation, coords[n], offset[n])
        px, py, pz = (x + offset[n, 0]) / grid - 0.5, (y + offset[n, 1]) / grid - 0.5, (z + offset[n, 2]) / grid - 0.5
        _, part[n] = nearest(parts, px, py, pz)
        n += 1
    return coords, offset, flags, part


@_jit
def inflate(inside, rounds):
    """Solve laplace(u) = -1 (unit spacing) inside bool [N, M], u = 0 elsewhere, by over-relaxation: float32 [N, M]."""
    n, m = inside.shape
    u = np.zeros((n, m), np.float32)
    for _ in range(rounds):
        for i in range(1, n - 1):
            for j in range(1, m - 1):
                if inside[i, j]:
                    mean = 0.25 * (u[i - 1, j] + u[i + 1, j] + u[i, j - 1] + u[i, j + 1] + 1)
                    u[i, j] += 1.9 * (mean - u[i, j])
    return u


@_jit
def _slope(value, x, y, z, axis):
    """Central difference of a lattice along an axis, one-sided at its border."""
    n = len(value) - 1
    ax, ay, az = axis == 0, axis == 1, axis == 2
    hx, hy, hz = min(x + ax, n), min(y + ay, n), min(z + az, n)
    lx, ly, lz = max(x - ax, 0), max(y - ay, 0), max(z - az, 0)
    return value[hx, hy, hz] - value[lx, ly, lz]


@_jit
def lattice_dual_grid(value, regularisation):
    """Dual-grid targets of the zero set of a lattice float32 [grid + 1]^3, negative inside: (coords uint8 [N, 3],
    offset float32 [N, 3], flags bool [N, 3]); see `dataset.dual_grid_targets`."""
    grid = len(value) - 1
    voxels = 0
    for x, y, z in np.ndindex((grid, grid, grid)):
        voxels += 0 < _corners_inside(value, x, y, z) < 8
    coords = np.empty((voxels, 3), np.uint8)
    offset = np.empty((voxels, 3), np.float32)
    flags = np.zeros((voxels, 3), np.bool_)
    crossing, found = np.empty((12, 6)), np.arange(12)
    n = 0
    for x, y, z in np.ndindex((grid, grid, grid)):
        if not 0 < _corners_inside(value, x, y, z) < 8:
            continue
        count = 0
        for axis in range(3):
            for k in range(4):
                u, v = k & 1, k >> 1
                ex, ey, ez = x + (axis != 0) * u, y + (axis == 0) * u + (axis == 2) * v, z + (axis != 2) * v
                fx, fy, fz = ex + (axis == 0), ey + (axis == 1), ez + (axis == 2)
                d0, d1 = value[ex, ey, ez], value[fx, fy, fz]
                if (d0 < 0) == (d1 < 0):
                    continue
                if k == 3:
                    flags[n, axis] = True
                t = d0 / (d0 - d1)
                row = crossing[count]
                row[0], row[1], row[2] = ex + t * (axis == 0), ey + t * (axis == 1), ez + t * (axis == 2)
                length = 1e-12
                for a in range(3):
                    row[3 + a] = (1 - t) * _slope(value, ex, ey, ez, a) + t * _slope(value, fx, fy, fz, a)
                    length += row[3 + a] * row[3 + a]
                for a in range(3):
                    row[3 + a] /= math.sqrt(length)
                count += 1
        coords[n, 0], coords[n, 1], coords[n, 2] = x, y, z
        _dual_vertex(crossing, found, count, regularisation, coords[n], offset[n])
        n += 1
    return coords, offset, flags


@_jit
def _trace(parts, active, ox, oy, oz, dx, dy, dz, limit, eps):
    """First hit along a unit ray: (distance or -1, part). `active` is scratch int64 [P]."""
    count, start, end = 0, 1e9, 0.0
    for i in range(len(parts)):
        cx, cy, cz = parts[i, 10] - ox, parts[i, 11] - oy, parts[i, 12] - oz
        along = cx * dx + cy * dy + cz * dz
        off = cx * cx + cy * cy + cz * cz - along * along
        gap = parts[i, BOUND] * parts[i, BOUND] - off
        if gap > 0:
            gap = math.sqrt(gap)
            if along + gap > 0:
                active[count] = i
                count += 1
                start = min(start, along - gap)
                end = max(end, along + gap)
    if count == 0:
        return -1.0, 0
    t = max(start, 0.0)
    end = min(end, limit)
    for _ in range(64):
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        best, which = 1e9, 0
        for k in range(count):
            d = part_distance(parts, active[k], x, y, z)
            if d < best:
                best, which = d, active[k]
        if best < eps:
            return t, which
        t += 0.95 * best
        if t > end:
            return -1.0, 0
    return -1.0, 0


@_jit
def _environment(lights, dx, dy, dz, rough, out):
    """Radiance of the surroundings along a direction, blurred by roughness: sky over ground and soft boxes, into out[3]."""
    blur = 0.04 + 0.7 * rough
    u = min(max((dz + 0.1) / (2 * blur) + 0.5, 0.0), 1.0)
    u = u * u * (3 - 2 * u)
    for c in range(3):
        out[c] = lights[1, 3 + c] * (1 - u) + lights[0, 3 + c] * u
    for i in range(2, len(lights)):
        away = 1 - (dx * lights[i, 0] + dy * lights[i, 1] + dz * lights[i, 2])
        width = lights[i, 6]
        spread = width + 0.5 * rough * rough
        glow = 2.5 * width / spread * math.exp(-away / spread)
        for c in range(3):
            out[c] += lights[i, 3 + c] * glow


@_jit
def _shade(parts, active, lights, which, x, y, z, vx, vy, vz, rgb, env):
    """Linear radiance of a surface point towards the unit direction v, into rgb[3]."""
    nx, ny, nz = part_normal(parts, which, x, y, z)
    facing = max(nx * vx + ny * vy + nz * vz, 0.0)
    metal, rough = parts[which, METALLIC], parts[which, ROUGHNESS]
    occlusion = 0.0
    for k in range(2):
        h = 0.03 + 0.06 * k
        d, _ = nearest(parts, x + h * nx, y + h * ny, z + h * nz)
        occlusion += 0.4 * max(h - d, 0.0) / h
    open_sky = 1 - min(occlusion, 0.8)
    rx, ry, rz = 2 * facing * nx - vx, 2 * facing * ny - vy, 2 * facing * nz - vz
    _environment(lights, rx, ry, rz, rough, env)
    graze = (1 - facing) ** 5 * (1 - 0.8 * rough)
    sky_share = 0.5 + 0.5 * nz
    key_x, key_y, key_z = lights[2, 0], lights[2, 1], lights[2, 2]
    lit = 1.0
    if nx * key_x + ny * key_y + nz * key_z > 0:
        h = 0.012
        t, _ = _trace(parts, active, x + h * nx, y + h * ny, z + h * nz, key_x, key_y, key_z, 2.0, 2e-3)
        lit = 1.0 if t < 0 else 0.25
    for c in range(3):
        base = parts[which, RGB + c]
        base = base / 12.92 if base <= 0.04045 else ((base + 0.055) / 1.055) ** 2.4
        mirror = 0.04 * (1 - metal) + base * metal
        mirror += (1 - mirror) * graze
        diffuse = (lights[1, 3 + c] * (1 - sky_share) + lights[0, 3 + c] * sky_share) * open_sky
        for i in range(2, len(lights)):
            lambert = max(nx * lights[i, 0] + ny * lights[i, 1] + nz * lights[i, 2], 0.0)
            diffuse += lights[i, 3 + c] * lambert * (lit if i == 2 else open_sky)
        rgb[c] = base * (1 - metal) * (1 - mirror) * diffuse + mirror * env[c] * open_sky * (0.5 + 0.5 * lit)


@_jit
def render(parts, eye, axes, window, size, lights):
    """Trace size x size rays; axes rows are right, up, forward; window = (left, right, top, bottom) on the plane at distance 1.

    Returns linear radiance float32 [size, size, 3], hit points float32 [size, size, 3], part int32 [size, size] (-1: none).
    """
    rgb = np.zeros((size, size, 3), np.float32)
    point = np.zeros((size, size, 3), np.float32)
    part = np.full((size, size), -1, np.int32)
    active = np.empty(len(parts), np.int64)
    colour, env = np.empty(3), np.empty(3)
    eps = 0.2 * (window[1] - window[0]) / size
    for row in range(size):
        v = window[2] + (window[3] - window[2]) * (row + 0.5) / size
        for col in range(size):
            u = window[0] + (window[1] - window[0]) * (col + 0.5) / size
            dx = axes[2, 0] + u * axes[0, 0] + v * axes[1, 0]
            dy = axes[2, 1] + u * axes[0, 1] + v * axes[1, 1]
            dz = axes[2, 2] + u * axes[0, 2] + v * axes[1, 2]
            length = math.sqrt(dx * dx + dy * dy + dz * dz)
            dx, dy, dz = dx / length, dy / length, dz / length
            t, which = _trace(parts, active, eye[0], eye[1], eye[2], dx, dy, dz, 1e9, eps)
            if t < 0:
                continue
            x, y, z = eye[0] + t * dx, eye[1] + t * dy, eye[2] + t * dz
            _shade(parts, active, lights, which, x, y, z, -dx, -dy, -dz, colour, env)
            part[row, col] = which
            rgb[row, col, 0], rgb[row, col, 1], rgb[row, col, 2] = colour[0], colour[1], colour[2]
            point[row, col, 0], point[row, col, 1], point[row, col, 2] = x, y, z
    return rgb, point, part
