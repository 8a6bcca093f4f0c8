"""What stands before a loop in its source: names, the BLAS, and exponentials that compile to vectors."""

from __future__ import annotations

import re

from . import blas

HEADER = '''
import math

import numpy as np
from numba import float32 as f32, float64 as f64, int64 as i64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

b1 = np.bool_
ROW, KEEP, TURN = np.int32(101), np.int32(111), np.int32(112)
_n, _p, _e = types.{integer}, types.voidptr, types.int32


def _gemm(name, t):
    signature = types.void(_e, _e, _e, _n, _n, _n, t, _p, _n, _p, _n, t, _p, _n)
    return types.ExternalFunction(name, signature)


sgemm, dgemm = _gemm("{sgemm}", types.float32), _gemm("{dgemm}", types.float64)


@intrinsic
def ptr(context, pointer, place):
    """The address of an element."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.gep(arguments[0], [arguments[1]]), cgutils.voidptr_t)

    return types.voidptr(pointer, types.intp), generate
'''

EXP = {
    "f32": '''

@njit("float32(float32)", error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)
def exp32(x):
    """e^x to 1 ulp, in a form that compiles to vectors: Cody and Waite's reduction, polynomial of Moshier's Cephes.
    Below -87 it is 0: what would be no normal number makes the arithmetic after it slow."""
    y = min(max(x, f32(-87.0)), f32(88.75))
    t = y * f32(1.44269504088896341) + f32(12582912.0)
    n = t - f32(12582912.0)
    r = y - n * f32(0.693359375) - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4) * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * (r * r) + r + f32(1.0)
    s = np.int32((np.float32(t).view(np.int32) << np.int32(23)) + np.int32(0x3F000000))  # 2^(n - 1): 2^128 is none
    z = (p + p) * s.view(np.float32)
    z = f32(0) if x < f32(-87.0) else z
    return x if x != x else z
''',
    "f64": '''

@njit("float64(float64)", error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)
def exp64(x):
    """e^x to 1 ulp, in a form that compiles to vectors: Cody and Waite's reduction, Taylor's series to r^13. Below -708
    it is 0: what would be no normal number makes the arithmetic after it slow."""
    y = min(max(x, -708.0), 710.0)
    t = y * 1.4426950408889634 + 6755399441055744.0
    n = t - 6755399441055744.0
    r = y - n * 0.693145751953125 - n * 1.42860682030941723212e-6
    p = 1.6059043836821613e-10 * r + 2.08767569878681e-09
    p = p * r + 2.505210838544172e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.7557319223985893e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 1.984126984126984e-04
    p = p * r + 1.3888888888888889e-03
    p = p * r + 8.333333333333333e-03
    p = p * r + 4.1666666666666664e-02
    p = p * r + 1.6666666666666666e-01
    p = p * r + 0.5
    p = p * (r * r) + r + 1.0
    s = np.int64((np.float64(t).view(np.int64) << 52) + np.int64(0x3FE0000000000000))  # 2^(n - 1): 2^1024 is none
    z = (p + p) * s.view(np.float64)
    z = 0.0 if x < -708.0 else z
    return x if x != x else z
''',
}

# `reassoc` lets sums run in vectors; nothing is assumed of NaN and infinities
LOOP = '''

# numbers
{numbers}

@njit(
    types.void({types}),
    error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True, fastmath={{"reassoc", "contract", "nsz"}},
)
{text}'''


_NUMBER = re.compile(r"\bf(32|64)\((-?(?:np\.(?:inf|nan)|[\d.]+(?:e[+-]?\d+)?))\)")


def source(text: str, types: list[str], exp: set[str], integer: str) -> str:
    """The module of a loop.

    `types`: of its arguments, as C names them; `exp`: those of which it needs exponentials; `integer`: the BLAS's type.

    Numbers such as `f32(0.5)` become names of constants: Numba takes a third of its time for calls.
    """
    names: dict[str, str] = {}
    text = _NUMBER.sub(lambda m: names.setdefault(f"np.float{m[1]}({m[2]})", f"k{len(names)}"), text)
    numbers = "\n".join(f"{name} = {value}" for value, name in names.items())
    listed = ", ".join(f"types.CPointer(types.{t[:-1]})" if t.endswith("*") else f"types.{t}" for t in types)
    head = HEADER.format(integer=integer, **blas.NAMES) + "".join(EXP[kind] for kind in sorted(exp))
    return head + LOOP.format(types=listed, numbers=numbers, text=text)
