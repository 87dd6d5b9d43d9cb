// cuBLASLt by dlopen: handles per GPU, algorithms remembered per shape.
#include "kernels/cuda/dense_library.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <tuple>

#include "kernels/cuda/device/element.cuh"

namespace nibble::kernels::cuda {
namespace {

struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) create_desc = nullptr;
  decltype(&cublasLtMatmulDescDestroy) destroy_desc = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) create_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) find_algorithm = nullptr;
  bool is_open = false;
};

template <typename Function>
bool load(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

Library open_library() {
  Library l;
  void* library = nullptr;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so"})
    if ((library = dlopen(name, RTLD_NOW | RTLD_LOCAL))) break;
  l.is_open = library && load(library, "cublasLtCreate", l.create) && load(library, "cublasLtMatmul", l.matmul) &&
              load(library, "cublasLtMatmulDescCreate", l.create_desc) &&
              load(library, "cublasLtMatmulDescDestroy", l.destroy_desc) &&
              load(library, "cublasLtMatmulDescSetAttribute", l.set_desc) &&
              load(library, "cublasLtMatrixLayoutCreate", l.create_layout) &&
              load(library, "cublasLtMatrixLayoutDestroy", l.destroy_layout) &&
              load(library, "cublasLtMatmulPreferenceCreate", l.create_preference) &&
              load(library, "cublasLtMatmulPreferenceDestroy", l.destroy_preference) &&
              load(library, "cublasLtMatmulPreferenceSetAttribute", l.set_preference) &&
              load(library, "cublasLtMatmulAlgoGetHeuristic", l.find_algorithm);
  return l;
}

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

/// The scratch of a call: the library's workspace, then the bias in bf16.
constexpr int64_t kBiasBytes = int64_t{1} << 20, kWorkspaceBytes = kDenseLibraryBytes - kBiasBytes;

__global__ void round_bias_kernel(const float* bias, int64_t count, __nv_bfloat16* out) {
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i < count) out[i] = from_float<__nv_bfloat16>(bias[i]);
}

/// The descriptors of one product; in the library's column order it is y^T (rows, m) = w^T-transposed . x^T.
class Product {
 public:
  /// bias: of y's type, or null.
  Product(DType dtype, int64_t m, int64_t rows, int64_t cols, const MatmulOutput& out, const void* bias) {
    const Library& l = library();
    const cudaDataType_t type = dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    is_good_ = l.create_desc(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
               l.set_desc(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose) == CUBLAS_STATUS_SUCCESS &&
               l.create_layout(&w_, type, cols, rows, cols) == CUBLAS_STATUS_SUCCESS &&
               l.create_layout(&x_, type, cols, m, cols) == CUBLAS_STATUS_SUCCESS &&
               l.create_layout(&y_, out.y_dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F, rows, m, out.y_stride) ==
                   CUBLAS_STATUS_SUCCESS;
    if (is_good_ && bias) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      is_good_ =
          l.set_desc(desc_, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) == CUBLAS_STATUS_SUCCESS &&
          l.set_desc(desc_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias) == CUBLAS_STATUS_SUCCESS;
    }
  }
  ~Product() {
    const Library& l = library();
    if (y_) l.destroy_layout(y_);
    if (x_) l.destroy_layout(x_);
    if (w_) l.destroy_layout(w_);
    if (desc_) l.destroy_desc(desc_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  bool is_good() const { return is_good_; }

  bool find(cublasLtHandle_t handle, cublasLtMatmulAlgo_t& algorithm) const {
    const Library& l = library();
    cublasLtMatmulPreference_t preference = nullptr;
    if (l.create_preference(&preference) != CUBLAS_STATUS_SUCCESS) return false;
    const uint64_t workspace = kWorkspaceBytes;
    const uint32_t alignment = 16;
    l.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      l.set_preference(preference, attribute, &alignment, sizeof alignment);
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    const auto status = l.find_algorithm(handle, desc_, w_, x_, y_, y_, preference, 1, &result, &found);
    l.destroy_preference(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) return false;
    algorithm = result.algo;
    return true;
  }

  bool launch(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm, const void* x, const void* w,
              const MatmulOutput& out, void* scratch, cudaStream_t stream) const {
    const float alpha = 1, beta = out.accumulate ? 1 : 0;
    return library().matmul(handle, desc_, &alpha, w, w_, x, x_, &beta, out.y, y_, out.y, y_, &algorithm, scratch,
                            kWorkspaceBytes, stream) == CUBLAS_STATUS_SUCCESS;
  }

 private:
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
  bool is_good_ = false;
};

struct Handles {
  std::mutex mutex;
  std::map<int, cublasLtHandle_t> of_device;
  using Shape = std::tuple<int, DType, int64_t, int64_t, int64_t, int64_t, bool, DType>;
  std::map<Shape, cublasLtMatmulAlgo_t> algorithms;
};

Handles& handles() {
  static Handles all;
  return all;
}

}  // namespace

bool has_dense_library() { return library().is_open; }

bool suits_dense_library(const MatmulOutput& out) {
  return reinterpret_cast<uintptr_t>(out.y) % 16 == 0 && out.y_stride * size_of(out.y_dtype) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(out.bias) % 16 == 0;
}

bool dense_multiply(const Context& context, const void* x, const void* w, DType dtype, int64_t m, int64_t rows,
                    int64_t cols, const MatmulOutput& out, void* scratch) {
  if (!suits_dense_library(out) || !has_dense_library()) return false;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  // With a bf16 y the library takes a bf16 bias only.
  const bool rounds_bias = out.bias && out.y_dtype == DType::bf16;
  if (rounds_bias && rows * 2 > kBiasBytes) return false;
  auto* rounded_bias = reinterpret_cast<__nv_bfloat16*>(static_cast<uint8_t*>(scratch) + kWorkspaceBytes);
  const Product product(dtype, m, rows, cols, out, rounds_bias ? static_cast<const void*>(rounded_bias) : out.bias);
  if (!product.is_good()) return false;
  const std::lock_guard lock(handles().mutex);
  cublasLtHandle_t& handle = handles().of_device[device];
  if (!handle) {  // creating one allocates, which a stream that is being recorded does not allow
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const bool is_asked = cudaStreamIsCapturing(static_cast<cudaStream_t>(context.stream), &status) == cudaSuccess;
    if (!is_asked || status != cudaStreamCaptureStatusNone) return false;
    if (library().create(&handle) != CUBLAS_STATUS_SUCCESS) return false;
  }
  const Handles::Shape shape{device, dtype, m, rows, cols, out.y_stride, out.bias != nullptr, out.y_dtype};
  auto found = handles().algorithms.find(shape);
  if (found == handles().algorithms.end()) {
    cublasLtMatmulAlgo_t algorithm;
    if (!product.find(handle, algorithm)) return false;
    found = handles().algorithms.emplace(shape, algorithm).first;
  }
  if (rounds_bias)
    round_bias_kernel<<<blocks_for(rows, 256), 256, 0, static_cast<cudaStream_t>(context.stream)>>>(out.bias, rows,
                                                                                                    rounded_bias);
  return product.launch(handle, found->second, x, w, out, scratch, static_cast<cudaStream_t>(context.stream));
}

}  // namespace nibble::kernels::cuda
