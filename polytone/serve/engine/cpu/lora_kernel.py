"""A compiled kernel that adds all adapters of a module in one call: y += x @ a @ b for every run of rows.

Numba, which vLLM depends on, compiles it for this processor. It runs in PyTorch's OpenMP thread pool, since a second
pool would compete for the same cores. For few rows the time is that of reading an adapter's matrices once,
where a matrix product per adapter and slice would pay for each call. For many rows a GEMM is faster.

Addresses are integers here and strides count elements; every matrix is row-major. Sums are float32. An adapter's
matrices are float32 too, or bfloat16 where that loses nothing: half the bytes to read, and the same sums.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core.cgutils import get_or_insert_function, voidptr_t
from numba.extending import intrinsic

MOST_ROWS = 64
HEAD = 8  # address of the first run, runs, x, its stride, y, its stride, scratch, its stride
RUN = 7  # first row, rows, a, inputs, ranks, slices, whether a and b are bfloat16
SLICE = 5  # left column, columns, first rank, ranks, b
TILE = 512  # columns of y that stay in the L1 cache while ranks are added
SIZE = 4
LINE = 64  # bytes

F = types.float32
FLOAT32, BFLOAT16 = np.float32(0), np.uint16(0)  # types of a matrix, by example; uint16 has the bits of a bfloat16
FAST = {"fastmath": True, "error_model": "numpy", "boundscheck": False}

Kernel = Callable[[int], None]

TEAM_BARRIER = types.ExternalFunction("GOMP_barrier", types.void())
TEAM_SIZE = types.ExternalFunction("omp_get_num_threads", types.int32())
THREAD_NUMBER = types.ExternalFunction("omp_get_thread_num", types.int32())


def build(threads: int) -> Kernel | None:
    """Compile; returns a function of a plan's address, or None where PyTorch's OpenMP is not GNU's or not visible."""
    openmp = ctypes.CDLL(None)
    try:
        run = openmp.GOMP_parallel
        for name in ("GOMP_barrier", "omp_get_num_threads", "omp_get_thread_num"):
            address = ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value
            llvmlite.binding.add_symbol(name, address)
    except AttributeError:
        return None
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    run.restype = None
    body = compiled().address

    def kernel(plan: int) -> None:
        run(body, plan, threads, 0)

    return kernel


def compiled() -> Any:
    """The function every thread of the team runs; kept on disk between starts where a place can be written."""
    try:
        return cfunc(types.void(types.voidptr), cache=True)(work)
    except RuntimeError:  # "no locator available"
        return cfunc(types.void(types.voidptr))(work)


@intrinsic
def pointer(_context: Any, address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def element(_context: Any, address: Any, index: Any, _kind: Any) -> Any:
    """Read the number at an index from an address as float32. A bfloat16 is the upper half of one."""

    def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bfloat16 = signature.args[2] == types.uint16
        stored = ir.IntType(16) if bfloat16 else ir.FloatType()
        start = builder.inttoptr(arguments[0], stored.as_pointer())
        value = builder.load(builder.gep(start, [arguments[1]]), align=2 if bfloat16 else 4)
        if bfloat16:
            bits = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            value = builder.bitcast(bits, ir.FloatType())
        return value

    return F(address, types.int64, _kind), generate


@intrinsic
def prefetch(_context: Any, address: Any) -> Any:
    """Start to load the cache line at an address, without waiting for it."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [voidptr_t, number, number, number])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        to_read, into_second_level, of_data = (ir.Constant(number, value) for value in (0, 2, 1))
        line = builder.inttoptr(arguments[0], voidptr_t)
        builder.call(function, [line, to_read, into_second_level, of_data])
        return _context.get_dummy_value()

    return types.void(address), generate


@njit
def prefetch_rows(matrix: int, stride: int, rows: int, first: int, last: int, size: int) -> None:
    for r in range(rows):
        for at in range(first * size, last * size, LINE):
            prefetch(matrix + r * stride * size + at)


@njit(inline="always")
def row(matrix: int, stride: int, number: int, length: int) -> Any:
    return carray(pointer(matrix + number * stride * SIZE), (length,), np.float32)


@intrinsic
def size_of(_context: Any, kind: Any) -> Any:
    """The size of a number in bytes."""

    def generate(_context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return ir.Constant(ir.IntType(64), kind.bitwidth // 8)

    return types.int64(kind), generate


@njit(**FAST)
def shrink(  # noqa: PLR0915 - sixteen sums in registers have sixteen names
    x: int, x_stride: int, a: int, inputs: int, h: int, h_stride: int, rows: int, first: int, last: int, kind: Any
) -> None:
    """h (rows, ranks) = x (rows, inputs) @ a (ranks, inputs).T for ranks `first` to `last`, four by four."""
    a_stride = inputs * size_of(kind)
    m = 0
    while m + 4 <= rows:
        x0, x1 = row(x, x_stride, m, inputs), row(x, x_stride, m + 1, inputs)
        x2, x3 = row(x, x_stride, m + 2, inputs), row(x, x_stride, m + 3, inputs)
        h0, h1 = row(h, h_stride, m, last), row(h, h_stride, m + 1, last)
        h2, h3 = row(h, h_stride, m + 2, last), row(h, h_stride, m + 3, last)
        r = first
        while r + 4 <= last:
            a0 = a + r * a_stride
            a1, a2, a3 = a0 + a_stride, a0 + 2 * a_stride, a0 + 3 * a_stride
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = F(0)
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = F(0)
            for k in range(inputs):
                p, q, u, v = x0[k], x1[k], x2[k], x3[k]
                w0, w1 = element(a0, k, kind), element(a1, k, kind)
                w2, w3 = element(a2, k, kind), element(a3, k, kind)
                s00 += p * w0
                s01 += p * w1
                s02 += p * w2
                s03 += p * w3
                s10 += q * w0
                s11 += q * w1
                s12 += q * w2
                s13 += q * w3
                s20 += u * w0
                s21 += u * w1
                s22 += u * w2
                s23 += u * w3
                s30 += v * w0
                s31 += v * w1
                s32 += v * w2
                s33 += v * w3
            h0[r], h0[r + 1], h0[r + 2], h0[r + 3] = s00, s01, s02, s03
            h1[r], h1[r + 1], h1[r + 2], h1[r + 3] = s10, s11, s12, s13
            h2[r], h2[r + 1], h2[r + 2], h2[r + 3] = s20, s21, s22, s23
            h3[r], h3[r + 1], h3[r + 2], h3[r + 3] = s30, s31, s32, s33
            r += 4
        while r < last:
            a0 = a + r * a_stride
            s00 = s10 = s20 = s30 = F(0)
            for k in range(inputs):
                w0 = element(a0, k, kind)
                s00 += x0[k] * w0
                s10 += x1[k] * w0
                s20 += x2[k] * w0
                s30 += x3[k] * w0
            h0[r], h1[r], h2[r], h3[r] = s00, s10, s20, s30
            r += 1
        m += 4
    while m < rows:
        x0, h0 = row(x, x_stride, m, inputs), row(h, h_stride, m, last)
        r = first
        while r + 4 <= last:
            a0 = a + r * a_stride
            a1, a2, a3 = a0 + a_stride, a0 + 2 * a_stride, a0 + 3 * a_stride
            s00 = s01 = s02 = s03 = F(0)
            for k in range(inputs):
                s00 += x0[k] * element(a0, k, kind)
                s01 += x0[k] * element(a1, k, kind)
                s02 += x0[k] * element(a2, k, kind)
                s03 += x0[k] * element(a3, k, kind)
            h0[r], h0[r + 1], h0[r + 2], h0[r + 3] = s00, s01, s02, s03
            r += 4
        while r < last:
            a0 = a + r * a_stride
            s00 = F(0)
            for k in range(inputs):
                s00 += x0[k] * element(a0, k, kind)
            h0[r] = s00
            r += 1
        m += 1


@njit(**FAST)
def expand(
    h: int,
    h_stride: int,
    ranks: int,
    b: int,
    columns: int,
    y: int,
    y_stride: int,
    rows: int,
    first: int,
    last: int,
    kind: Any,
) -> None:
    """y (rows, columns) += h (rows, ranks) @ b (ranks, columns) for columns `first` to `last`, four ranks at a time."""
    b_stride = columns * size_of(kind)
    while first < last:
        width = min(first + TILE, last) - first
        b_tile, y_tile = b + first * size_of(kind), y + first * SIZE
        r = 0
        while r + 4 <= ranks:
            b0 = b_tile + r * b_stride
            b1, b2, b3 = b0 + b_stride, b0 + 2 * b_stride, b0 + 3 * b_stride
            m = 0
            while m + 4 <= rows:
                y0, y1 = row(y_tile, y_stride, m, width), row(y_tile, y_stride, m + 1, width)
                y2, y3 = row(y_tile, y_stride, m + 2, width), row(y_tile, y_stride, m + 3, width)
                h0, h1 = row(h, h_stride, m, ranks), row(h, h_stride, m + 1, ranks)
                h2, h3 = row(h, h_stride, m + 2, ranks), row(h, h_stride, m + 3, ranks)
                p0, p1, p2, p3 = h0[r], h0[r + 1], h0[r + 2], h0[r + 3]
                q0, q1, q2, q3 = h1[r], h1[r + 1], h1[r + 2], h1[r + 3]
                u0, u1, u2, u3 = h2[r], h2[r + 1], h2[r + 2], h2[r + 3]
                v0, v1, v2, v3 = h3[r], h3[r + 1], h3[r + 2], h3[r + 3]
                for k in range(width):
                    w0, w1 = element(b0, k, kind), element(b1, k, kind)
                    w2, w3 = element(b2, k, kind), element(b3, k, kind)
                    y0[k] += p0 * w0 + p1 * w1 + p2 * w2 + p3 * w3
                    y1[k] += q0 * w0 + q1 * w1 + q2 * w2 + q3 * w3
                    y2[k] += u0 * w0 + u1 * w1 + u2 * w2 + u3 * w3
                    y3[k] += v0 * w0 + v1 * w1 + v2 * w2 + v3 * w3
                m += 4
            while m < rows:
                y0, h0 = row(y_tile, y_stride, m, width), row(h, h_stride, m, ranks)
                p0, p1, p2, p3 = h0[r], h0[r + 1], h0[r + 2], h0[r + 3]
                for k in range(width):
                    w0, w1 = element(b0, k, kind), element(b1, k, kind)
                    w2, w3 = element(b2, k, kind), element(b3, k, kind)
                    y0[k] += p0 * w0 + p1 * w1 + p2 * w2 + p3 * w3
                m += 1
            r += 4
        while r < ranks:
            b0 = b_tile + r * b_stride
            for m in range(rows):
                y0, p0 = row(y_tile, y_stride, m, width), row(h, h_stride, m, ranks)[r]
                for k in range(width):
                    y0[k] += p0 * element(b0, k, kind)
            r += 1
        first += width


def work(plan: Any) -> None:
    """One thread's work: its share of the ranks of every run and, when all threads are done, of the columns of y."""
    head = carray(plan, (HEAD,), np.int64)
    x, x_stride, y, y_stride = head[2], head[3], head[4], head[5]
    h, h_stride = head[6], head[7]
    thread, threads = THREAD_NUMBER(), TEAM_SIZE()  # there may be fewer than requested
    for phase in range(2):
        at = head[0]
        for _ in range(head[1]):
            run = carray(pointer(at), (RUN,), np.int64)
            start, rows, ranks, bfloat16 = run[0], run[1], run[4], run[6]
            size = 2 if bfloat16 else SIZE
            at += RUN * 8
            run_h = h + start * h_stride * SIZE
            for _ in range(run[5]):
                part = carray(pointer(at), (SLICE,), np.int64)
                left, columns, part_ranks, b = part[0], part[1], part[3], part[4]
                at += SLICE * 8
                share = ((columns + threads - 1) // threads + 15) // 16 * 16
                first, last = thread * share, min((thread + 1) * share, columns)
                if phase == 0 and first < last:
                    prefetch_rows(b, columns, part_ranks, first, last, size)
                if phase == 1 and first < last:
                    part_y = y + (start * y_stride + left) * SIZE
                    part_h = run_h + part[2] * SIZE
                    if bfloat16:
                        expand(part_h, h_stride, part_ranks, b, columns, part_y, y_stride, rows, first, last, BFLOAT16)
                    else:
                        expand(part_h, h_stride, part_ranks, b, columns, part_y, y_stride, rows, first, last, FLOAT32)
            if phase == 0:
                share = (ranks + threads - 1) // threads
                first, last = thread * share, min((thread + 1) * share, ranks)
                run_x = x + start * x_stride * SIZE
                if first < last and bfloat16:
                    shrink(run_x, x_stride, run[2], run[3], run_h, h_stride, rows, first, last, BFLOAT16)
                elif first < last:
                    shrink(run_x, x_stride, run[2], run[3], run_h, h_stride, rows, first, last, FLOAT32)
        if phase == 0:
            TEAM_BARRIER()
