"""Compile CuPy's kernels with NVRTC for a GPU that is not there. Needs CuPy, but no device.

CuPy generates the source of an `ElementwiseKernel` when it is called, and asks the device for its architecture. Here
the types are told and the architecture is chosen. The functions of CuPy that this uses are private: they belong to the
version that build.py pins.
"""

import numpy as np

ARCHITECTURES = (75, 80, 90, 120)  # Turing (the oldest that CUDA 13 knows), Ampere, Hopper, Blackwell

ND_ARRAY, INDEXER, SCALAR = 1, 2, 3  # _ArgKind in CuPy's _kernel.pxd


def elementwise_source(kernel, *arguments) -> str:
    """The CUDA C++ of an `ElementwiseKernel` for such arguments, inputs and outputs in order.

    NumPy arrays stand for arrays on the device; their dtype, number of axes and contiguity count. NumPy scalars stand
    for numbers."""
    import cupy
    from cupy._core import _carray, _kernel, _scalar

    if len(arguments) != kernel.nargs:
        raise TypeError(f"{kernel.name} has {kernel.nargs} parameters, {len(arguments)} arguments are given")

    def information(argument):
        if not isinstance(argument, np.ndarray):
            return _kernel._ArgInfo(SCALAR, _scalar.CScalar, argument.dtype, 0, True, True)
        contiguous = argument.flags.c_contiguous
        return _kernel._ArgInfo(ND_ARRAY, cupy.ndarray, argument.dtype, argument.ndim, contiguous, True)

    # A raw parameter is indexed by the kernel itself and does not take part in the loop.
    parameters = (*kernel.in_params, *kernel.out_params)
    axes = max(argument.ndim for argument, parameter in zip(arguments, parameters, strict=True) if not parameter.raw)
    informations = (*map(information, arguments), _kernel._ArgInfo(INDEXER, _carray.Indexer, None, axes, True, True))
    dtypes = tuple(argument.dtype for argument in arguments)
    *_, types = kernel._decide_params_type(dtypes[: kernel.nin], dtypes[kernel.nin :])
    return _kernel._get_elementwise_kernel_code(
        informations, types, kernel.params, kernel.operation, kernel.name, kernel.preamble, **kernel.kwargs
    )


def compile_for(source: str, architecture: int) -> bytes:
    """What NVRTC makes of a kernel's source for `sm_<architecture>`; `CompileException` if it refuses."""
    from cupy._core import core
    from cupy.cuda import compiler

    headers = "".join(f"#include <{header}>\n" for header in core._cupy_header_list)
    options = (*core.assemble_cupy_compiler_options(()), "-ftz=true", f"-arch=sm_{architecture}",
               "--device-as-default-execution-space")
    program = compiler._NVRTCProgram(headers + source, "kernel.cu", (), (), method="cubin")
    image, _ = program.compile(options)
    return image
