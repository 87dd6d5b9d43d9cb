// cuBLASLt by dlopen: handles per GPU, algorithms remembered per shape.
#include "kernels/cuda/dense_library.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

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
  decltype(&cublasLtGetVersion) version = nullptr;
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
              load(library, "cublasLtMatmulAlgoGetHeuristic", l.find_algorithm) &&
              load(library, "cublasLtGetVersion", l.version);
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

/// The descriptors of one product. The library counts by columns, so that what it multiplies is out^T = b^T . a^T.
class Product {
 public:
  /// bias: one for each column, of out's type, or null.
  explicit Product(const DenseProduct& p, const void* bias = nullptr) : product_(p) {
    const Library& l = library();
    const cudaDataType_t type = p.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
    const cudaDataType_t out_type = p.out_dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      return l.set_desc(desc_, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
    };
    const auto layout = [&](cublasLtMatrixLayout_t& to, const DenseMatrix& x, int64_t rows, int64_t cols) {
      if (x.is_transposed) std::swap(rows, cols);
      return l.create_layout(&to, type, static_cast<uint64_t>(cols), static_cast<uint64_t>(rows), x.stride) ==
             CUBLAS_STATUS_SUCCESS;
    };
    const auto operation = [](const DenseMatrix& x) { return x.is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    is_good_ = l.create_desc(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
               set(CUBLASLT_MATMUL_DESC_TRANSA, operation(p.b)) && set(CUBLASLT_MATMUL_DESC_TRANSB, operation(p.a)) &&
               layout(b_, p.b, p.k, p.n) && layout(a_, p.a, p.m, p.k) &&
               l.create_layout(&out_, out_type, static_cast<uint64_t>(p.n), static_cast<uint64_t>(p.m), p.out_stride) ==
                   CUBLAS_STATUS_SUCCESS;
    if (is_good_ && bias)
      is_good_ =
          set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS) && set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  ~Product() {
    const Library& l = library();
    for (const cublasLtMatrixLayout_t layout : {a_, b_, out_})
      if (layout) l.destroy_layout(layout);
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
    const auto status = l.find_algorithm(handle, desc_, b_, a_, out_, out_, preference, 1, &result, &found);
    l.destroy_preference(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) return false;
    algorithm = result.algo;
    return true;
  }

  bool launch(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm, void* scratch,
              cudaStream_t stream) const {
    const float alpha = 1, beta = product_.accumulate ? 1 : 0;
    return library().matmul(handle, desc_, &alpha, product_.b.data, b_, product_.a.data, a_, &beta, product_.out, out_,
                            product_.out, out_, &algorithm, scratch, kWorkspaceBytes, stream) == CUBLAS_STATUS_SUCCESS;
  }

 private:
  DenseProduct product_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, out_ = nullptr;
  bool is_good_ = false;
};

struct Handles {
  std::mutex mutex;
  std::map<int, cublasLtHandle_t> of_device;
  using Shape = std::tuple<int, DType, DType, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int>;
  std::map<Shape, cublasLtMatmulAlgo_t> algorithms;
};

Handles& handles() {
  static Handles all;
  return all;
}

/// Without scratch it only looks whether the library would take the product.
bool launch(const Context& context, const DenseProduct& p, const void* bias, void* scratch) {
  int device = 0;
  if (!has_dense_library() || cudaGetDevice(&device) != cudaSuccess) return false;
  const Product product(p, bias);
  if (!product.is_good()) return false;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const std::lock_guard lock(handles().mutex);
  cublasLtHandle_t& handle = handles().of_device[device];
  if (!handle) {  // creating one allocates, which a stream that is being recorded does not allow
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const bool is_asked = cudaStreamIsCapturing(stream, &status) == cudaSuccess;
    if (!is_asked || status != cudaStreamCaptureStatusNone) return false;
    if (library().create(&handle) != CUBLAS_STATUS_SUCCESS) return false;
  }
  const int flags = (p.a.is_transposed ? 1 : 0) | (p.b.is_transposed ? 2 : 0) | (bias ? 4 : 0);
  const Handles::Shape shape{device, p.dtype, p.out_dtype, p.m, p.n, p.k, p.a.stride, p.b.stride, p.out_stride, flags};
  auto found = handles().algorithms.find(shape);
  if (found == handles().algorithms.end()) {
    cublasLtMatmulAlgo_t algorithm;
    if (!product.find(handle, algorithm)) return false;
    found = handles().algorithms.emplace(shape, algorithm).first;
  }
  return !scratch || product.launch(handle, found->second, scratch, stream);
}

DenseProduct product_of(const void* x, const void* w, DType dtype, int64_t m, int64_t rows, int64_t cols,
                        const MatmulOutput& out) {
  return {.a = {x, cols, false},
          .b = {w, cols, true},
          .m = m,
          .n = rows,
          .k = cols,
          .out = out.y,
          .out_stride = out.y_stride,
          .out_dtype = out.y_dtype,
          .accumulate = out.accumulate,
          .dtype = dtype};
}

/// The library takes a bias of y's type only, so that one for bf16 has to fit into scratch.
bool suits_bias(const MatmulOutput& out, int64_t rows) {
  return !out.bias || out.y_dtype != DType::bf16 || rows * 2 <= kBiasBytes;
}

}  // namespace

bool has_dense_library() { return library().is_open; }

std::string dense_library_version() {
  if (!has_dense_library()) return "";
  const size_t version = library().version();  // 10000 * major + 100 * minor + patch
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

bool suits_dense_library(const MatmulOutput& out) {
  return reinterpret_cast<uintptr_t>(out.y) % 16 == 0 && out.y_stride * size_of(out.y_dtype) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(out.bias) % 16 == 0;
}

bool takes_dense_multiply(const Context& context, DType dtype, int64_t m, int64_t rows, int64_t cols,
                          const MatmulOutput& out) {
  return suits_dense_library(out) && suits_bias(out, rows) &&
         launch(context, product_of(nullptr, nullptr, dtype, m, rows, cols, out), out.bias, nullptr);
}

bool dense_multiply(const Context& context, const void* x, const void* w, DType dtype, int64_t m, int64_t rows,
                    int64_t cols, const MatmulOutput& out, void* scratch) {
  if (!has_dense_library() || !suits_dense_library(out) || !suits_bias(out, rows)) return false;
  const void* bias = out.bias;
  if (out.bias && out.y_dtype == DType::bf16) {
    auto* rounded = reinterpret_cast<__nv_bfloat16*>(static_cast<uint8_t*>(scratch) + kWorkspaceBytes);
    round_bias_kernel<<<blocks_for(rows, 256), 256, 0, static_cast<cudaStream_t>(context.stream)>>>(out.bias, rows,
                                                                                                    rounded);
    bias = rounded;
  }
  return launch(context, product_of(x, w, dtype, m, rows, cols, out), bias, scratch);
}

bool dense_product(const Context& context, const DenseProduct& product, void* scratch) {
  return launch(context, product, nullptr, scratch);
}

}  // namespace nibble::kernels::cuda
