// libcublas.so.13 of the pretend GPU: the matrix products and the transposition that CuPy asks of cuBLAS, as plain
// loops over column-major matrices. build.py adds a stub that answers "not supported" for everything else.

#include <stddef.h>

#include <complex>
#include <vector>

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_64F = 1, R_16F = 2, C_32F = 4, C_64F = 5 };  // cudaDataType_t

typedef void* Handle;

extern "C" {
bool pretend_on_device(const void* address, size_t size);
void pretend_event(int kind, const char* what, long long size);
}
static const int LAUNCH = 4;  // in the enumeration of cuda.cpp

// ---------------------------------------------------------------------------------------------------------------------
// Loops
// ---------------------------------------------------------------------------------------------------------------------

// Whether a column-major matrix lies in device memory as a whole. A GPU would end in an illegal memory access.
template <class T>
static bool on_device(const T* matrix, int rows, int columns, int stride) {
  if (rows == 0 || columns == 0) return true;
  return pretend_on_device(matrix, (size_t(columns - 1) * stride + rows) * sizeof(T));
}

template <class T>
static T conjugate(T x) { return x; }
template <class T>
static std::complex<T> conjugate(std::complex<T> x) { return std::conj(x); }

// An entry of op(matrix): as it is (0), transposed (1), or transposed and conjugated (2).
template <class T>
static T entry(const T* matrix, int stride, int op, int row, int column) {
  if (op == 0) return matrix[row + size_t(column) * stride];
  T x = matrix[column + size_t(row) * stride];
  return op == 1 ? x : conjugate(x);
}

// c = alpha op(a) op(b) + beta c, summed in Sum. A beta of 0 means that c is not read: it may hold anything.
template <class T, class Sum>
static int multiply(int op_a, int op_b, int m, int n, int k, const void* alpha_, const void* a_, int stride_a,
                    const void* b_, int stride_b, const void* beta_, void* c_, int stride_c) {
  const T *a = static_cast<const T*>(a_), *b = static_cast<const T*>(b_);
  T* c = static_cast<T*>(c_);
  Sum alpha = *static_cast<const Sum*>(alpha_), beta = *static_cast<const Sum*>(beta_);
  if (!on_device(a, op_a ? k : m, op_a ? m : k, stride_a) || !on_device(b, op_b ? n : k, op_b ? k : n, stride_b) ||
      !on_device(c, m, n, stride_c))
    return EXECUTION_FAILED;

  std::vector<Sum> left(size_t(m) * k);  // op(a), so that the innermost loop runs along memory
  for (int l = 0; l < k; l++)
    for (int i = 0; i < m; i++) left[i + size_t(l) * m] = Sum(entry(a, stride_a, op_a, i, l));
  std::vector<Sum> column(m);
  for (int j = 0; j < n; j++) {
    for (int i = 0; i < m; i++) column[i] = Sum(0);
    for (int l = 0; l < k; l++) {
      Sum factor = Sum(entry(b, stride_b, op_b, l, j));
      const Sum* from = &left[size_t(l) * m];
      for (int i = 0; i < m; i++) column[i] += from[i] * factor;
    }
    for (int i = 0; i < m; i++) {
      T& to = c[i + size_t(j) * stride_c];
      to = T(beta == Sum(0) ? alpha * column[i] : alpha * column[i] + beta * Sum(to));
    }
  }
  return SUCCESS;
}

static int multiply(int type, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int stride_a,
                    const void* b, int stride_b, const void* beta, void* c, int stride_c) {
  auto with = [&](auto function) {
    return function(op_a, op_b, m, n, k, alpha, a, stride_a, b, stride_b, beta, c, stride_c);
  };
  switch (type) {
    case R_16F: return with(multiply<_Float16, float>);
    case R_32F: return with(multiply<float, float>);
    case R_64F: return with(multiply<double, double>);
    case C_32F: return with(multiply<std::complex<float>, std::complex<float>>);
    case C_64F: return with(multiply<std::complex<double>, std::complex<double>>);
    default: return NOT_SUPPORTED;
  }
}

static size_t size_of(int type) {
  switch (type) {
    case R_16F: return 2;
    case R_32F: return 4;
    case C_64F: return 16;
    default: return 8;
  }
}

// c = alpha op(a) + beta op(b)
template <class T>
static int add(int op_a, int op_b, int m, int n, const T* alpha, const T* a, int stride_a, const T* beta, const T* b,
               int stride_b, T* c, int stride_c) {
  if (!on_device(a, op_a ? n : m, op_a ? m : n, stride_a) || !on_device(b, op_b ? n : m, op_b ? m : n, stride_b) ||
      !on_device(c, m, n, stride_c))
    return EXECUTION_FAILED;
  for (int j = 0; j < n; j++)
    for (int i = 0; i < m; i++) {
      T sum = *alpha * entry(a, stride_a, op_a, i, j);
      if (*beta != T(0)) sum += *beta * entry(b, stride_b, op_b, i, j);
      c[i + size_t(j) * stride_c] = sum;
    }
  pretend_event(LAUNCH, "cublas geam", (long long)m * n);
  return SUCCESS;
}

// A batch of products, whose matrices are named by a list of pointers that lies in device memory.
static int batch(int type, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* const* a,
                 int stride_a, const void* const* b, int stride_b, const void* beta, void* const* c, int stride_c,
                 int count) {
  size_t bytes = size_t(count) * sizeof(void*);
  if (!pretend_on_device(a, bytes) || !pretend_on_device(b, bytes) || !pretend_on_device(c, bytes))
    return EXECUTION_FAILED;
  pretend_event(LAUNCH, "cublas gemmBatched", (long long)m * n * k * count);
  int status = SUCCESS;
  for (int i = 0; i < count && status == SUCCESS; i++)
    status = multiply(type, op_a, op_b, m, n, k, alpha, a[i], stride_a, b[i], stride_b, beta, c[i], stride_c);
  return status;
}

// ---------------------------------------------------------------------------------------------------------------------
// Entry points
// ---------------------------------------------------------------------------------------------------------------------

extern "C" {

int cublasCreate_v2(Handle* handle) {
  static int any;
  *handle = &any;
  return SUCCESS;
}
int cublasDestroy_v2(Handle) { return SUCCESS; }
int cublasGetVersion_v2(Handle, int* version) {
  *version = 130200;
  return SUCCESS;
}
int cublasSetStream_v2(Handle, void*) { return SUCCESS; }
int cublasSetMathMode(Handle, int) { return SUCCESS; }
int cublasGetMathMode(Handle, int* mode) {
  *mode = 0;
  return SUCCESS;
}
int cublasSetPointerMode_v2(Handle, int mode) { return mode == 0 ? SUCCESS : NOT_SUPPORTED; }  // 0: scalars on the host
int cublasGetPointerMode_v2(Handle, int* mode) {
  *mode = 0;
  return SUCCESS;
}

int cublasGemmEx(Handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int type_a,
                 int stride_a, const void* b, int type_b, int stride_b, const void* beta, void* c, int type_c,
                 int stride_c, int, int) {
  if (type_a != type_b || type_a != type_c) return NOT_SUPPORTED;
  pretend_event(LAUNCH, "cublas gemm", (long long)m * n * k);
  return multiply(type_a, op_a, op_b, m, n, k, alpha, a, stride_a, b, stride_b, beta, c, stride_c);
}

int cublasGemmStridedBatchedEx(Handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                               int type_a, int stride_a, long long step_a, const void* b, int type_b, int stride_b,
                               long long step_b, const void* beta, void* c, int type_c, int stride_c, long long step_c,
                               int count, int, int) {
  if (type_a != type_b || type_a != type_c) return NOT_SUPPORTED;
  pretend_event(LAUNCH, "cublas gemmStridedBatched", (long long)m * n * k * count);
  long long size = (long long)size_of(type_a);
  int status = SUCCESS;
  for (int i = 0; i < count && status == SUCCESS; i++)
    status = multiply(type_a, op_a, op_b, m, n, k, alpha, static_cast<const char*>(a) + i * step_a * size, stride_a,
                      static_cast<const char*>(b) + i * step_b * size, stride_b, beta,
                      static_cast<char*>(c) + i * step_c * size, stride_c);
  return status;
}

#define GEMM_BATCHED(name, type)                                                                                     \
  int name(Handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* const* a, int stride_a,   \
           const void* const* b, int stride_b, const void* beta, void* const* c, int stride_c, int count) {          \
    return batch(type, op_a, op_b, m, n, k, alpha, a, stride_a, b, stride_b, beta, c, stride_c, count);              \
  }
GEMM_BATCHED(cublasSgemmBatched, R_32F)
GEMM_BATCHED(cublasDgemmBatched, R_64F)
GEMM_BATCHED(cublasCgemmBatched, C_32F)
GEMM_BATCHED(cublasZgemmBatched, C_64F)

int cublasSgeam(Handle, int op_a, int op_b, int m, int n, const float* alpha, const float* a, int stride_a,
                const float* beta, const float* b, int stride_b, float* c, int stride_c) {
  return add(op_a, op_b, m, n, alpha, a, stride_a, beta, b, stride_b, c, stride_c);
}
int cublasDgeam(Handle, int op_a, int op_b, int m, int n, const double* alpha, const double* a, int stride_a,
                const double* beta, const double* b, int stride_b, double* c, int stride_c) {
  return add(op_a, op_b, m, n, alpha, a, stride_a, beta, b, stride_b, c, stride_c);
}

}  // extern "C"
