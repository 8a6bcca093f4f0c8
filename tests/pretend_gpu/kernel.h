// Lets g++ compile the CUDA C++ that CuPy generates. Included ahead of every kernel; build.py precompiles it together
// with CuPy's own headers. cuda.cpp runs what comes out: one call of the kernel per CUDA thread.
#pragma once

#include <bits/c++config.h>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // the special functions of <cmath> would cost every kernel 30 ms

#include <assert.h>
#include <math.h>  // of libstdc++: one name for float and double, and double for whole numbers, as in CUDA
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>
#include <utility>

// ---------------------------------------------------------------------------------------------------------------------
// Language
// ---------------------------------------------------------------------------------------------------------------------

#define __device__
#define __host__
#define __global__
#define __managed__
#define __noinline__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ __attribute__((externally_visible))
#define __shared__ static  // the blocks of a launch run one after another, so that they can share one copy

// ---------------------------------------------------------------------------------------------------------------------
// Threads (defined in cuda.cpp)
// ---------------------------------------------------------------------------------------------------------------------

struct dim3 {
  unsigned x, y, z;
};

extern "C" {
extern dim3 pretend_threadIdx, pretend_blockIdx, pretend_blockDim, pretend_gridDim;
void pretend_wait_for_block();
void pretend_wait_for_warp();
void* pretend_slot(int thread);  // 16 bytes of each thread that its warp can read
unsigned short pretend_half_from_float(float);
float pretend_float_from_half(unsigned short);
}

#define threadIdx pretend_threadIdx
#define blockIdx pretend_blockIdx
#define blockDim pretend_blockDim
#define gridDim pretend_gridDim
#define warpSize 32

inline void __syncthreads() { pretend_wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { pretend_wait_for_warp(); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

namespace pretend {

inline int thread() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
inline int lane() { return thread() & 31; }
inline int warp_size() {
  int left = int(blockDim.x * blockDim.y * blockDim.z) - (thread() & ~31);
  return left < 32 ? left : 32;
}

// Every thread of a warp shows a value and reads the one that `source` shows; its own, where there is no such thread.
template <class T>
inline T exchange(T value, int source) {
  static_assert(sizeof(T) <= 16, "a shuffled value has at most 16 bytes");
  int first = thread() & ~31;
  memcpy(pretend_slot(thread()), &value, sizeof(T));
  pretend_wait_for_warp();
  if (source >= 0 && source < warp_size()) memcpy(&value, pretend_slot(first + source), sizeof(T));
  pretend_wait_for_warp();
  return value;
}

// A bit for each thread of the warp: whether it is in the mask, has not ended, and its predicate holds.
inline unsigned ballot(unsigned mask, int predicate) {
  int first = thread() & ~31;
  unsigned votes = 0;
  memcpy(pretend_slot(thread()), &predicate, sizeof predicate);
  pretend_wait_for_warp();
  for (int i = 0; i < warp_size(); i++) {
    int vote;
    memcpy(&vote, pretend_slot(first + i), sizeof vote);
    votes |= unsigned(vote != 0) << i;
  }
  pretend_wait_for_warp();
  return votes & mask;
}

// Where the lanes of a group of `width` (a power of two) read from.
inline int up(unsigned delta, int width) { return (lane() & (width - 1)) < int(delta) ? lane() : lane() - int(delta); }
inline int down(unsigned delta, int width) {
  return (lane() & (width - 1)) + int(delta) >= width ? lane() : lane() + int(delta);
}
inline int within(int source, int width) { return (lane() & ~(width - 1)) + (source & (width - 1)); }

}  // namespace pretend

template <class T>
inline T __shfl_sync(unsigned, T value, int source, int width = 32) {
  return pretend::exchange(value, pretend::within(source, width));
}
template <class T>
inline T __shfl_up_sync(unsigned, T value, unsigned delta, int width = 32) {
  return pretend::exchange(value, pretend::up(delta, width));
}
template <class T>
inline T __shfl_down_sync(unsigned, T value, unsigned delta, int width = 32) {
  return pretend::exchange(value, pretend::down(delta, width));
}
template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return pretend::exchange(value, pretend::lane() ^ mask);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return pretend::ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return pretend::ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return pretend::ballot(mask, !predicate) == 0; }

// ---------------------------------------------------------------------------------------------------------------------
// Atomics: only one thread runs at a time. The types are CUDA's; CuPy's atomics.cuh builds the others from them.
// ---------------------------------------------------------------------------------------------------------------------

#define PRETEND_ATOMIC(name, T, expression) \
  inline T name(T* address, T value) {      \
    T old = *address;                       \
    *address = expression;                  \
    return old;                             \
  }
#define PRETEND_ATOMICS(T)                                   \
  PRETEND_ATOMIC(atomicAdd, T, old + value)                  \
  PRETEND_ATOMIC(atomicExch, T, value)                       \
  inline T atomicCAS(T* address, T compare, T value) {       \
    T old = *address;                                        \
    if (old == compare) *address = value;                    \
    return old;                                              \
  }
#define PRETEND_INTEGER_ATOMICS(T)                           \
  PRETEND_ATOMICS(T)                                         \
  PRETEND_ATOMIC(atomicSub, T, old - value)                  \
  PRETEND_ATOMIC(atomicMax, T, old > value ? old : value)    \
  PRETEND_ATOMIC(atomicMin, T, old < value ? old : value)    \
  PRETEND_ATOMIC(atomicAnd, T, old & value)                  \
  PRETEND_ATOMIC(atomicOr, T, old | value)                   \
  PRETEND_ATOMIC(atomicXor, T, old ^ value)
PRETEND_INTEGER_ATOMICS(int)
PRETEND_INTEGER_ATOMICS(unsigned)
PRETEND_INTEGER_ATOMICS(unsigned long long)
PRETEND_ATOMIC(atomicAdd, float, old + value)
PRETEND_ATOMIC(atomicAdd, double, old + value)
PRETEND_ATOMIC(atomicExch, float, value)
PRETEND_ATOMIC(atomicMax, long long, old > value ? old : value)
PRETEND_ATOMIC(atomicMin, long long, old < value ? old : value)

// ---------------------------------------------------------------------------------------------------------------------
// Bits
// ---------------------------------------------------------------------------------------------------------------------

namespace pretend {
template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace pretend

inline int __float_as_int(float x) { return pretend::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return pretend::bits<unsigned>(x); }
inline float __int_as_float(int x) { return pretend::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return pretend::bits<float>(x); }
inline long long __double_as_longlong(double x) { return pretend::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return pretend::bits<double>(x); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline double __hiloint2double(int high, int low) {
  return __longlong_as_double((long long)((unsigned long long)unsigned(high) << 32 | unsigned(low)));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
template <class T>
inline T __ldg(const T* address) {
  return *address;
}

// ---------------------------------------------------------------------------------------------------------------------
// Mathematics that <math.h> does not have
// ---------------------------------------------------------------------------------------------------------------------

inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrtf(float x) { return rsqrt(x); }
inline unsigned short __float2half_rn(float x) { return pretend_half_from_float(x); }
inline float __half2float(unsigned short x) { return pretend_float_from_half(x); }

namespace pretend {
template <class A, class B>
using common = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>>;
}

// As in CUDA, a NaN loses against a number.
template <class A, class B>
inline pretend::common<A, B> min(A a, B b) {
  pretend::common<A, B> x = a, y = b;
  if constexpr (std::is_floating_point_v<decltype(x)>) return fmin(x, y);
  else return y < x ? y : x;
}
template <class A, class B>
inline pretend::common<A, B> max(A a, B b) {
  pretend::common<A, B> x = a, y = b;
  if constexpr (std::is_floating_point_v<decltype(x)>) return fmax(x, y);
  else return x < y ? y : x;
}

// ---------------------------------------------------------------------------------------------------------------------
// CuPy's headers, which it names at the top of every kernel: once here, they cost nothing there
// ---------------------------------------------------------------------------------------------------------------------

struct half;
unsigned short __half_as_ushort(half);
half __ushort_as_half(unsigned short);

#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
#include <cupy/float16.cuh>

inline unsigned short __half_as_ushort(half x) { return __half_raw(x).x; }
inline half __ushort_as_half(unsigned short bits) { return half(__half_raw{bits}); }

// ---------------------------------------------------------------------------------------------------------------------
// What cuda.cpp calls, once a thread: it unpacks the arguments of a launch.
// ---------------------------------------------------------------------------------------------------------------------

namespace pretend {
template <class... A, size_t... I>
inline void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*reinterpret_cast<std::remove_const_t<A>*>(arguments[I])...);
}
template <class... A>
inline void call(void (*kernel)(A...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}
}  // namespace pretend

#define PRETEND_ENTRY(entry, ...) \
  extern "C" __attribute__((externally_visible)) void entry(void** arguments) { pretend::call(__VA_ARGS__, arguments); }
