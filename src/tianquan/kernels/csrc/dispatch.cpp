// Which instruction sets this build has and this processor can run.

#include <cstring>

#if defined(TIANQUAN_HAS_AVX2)
#include <cpuid.h>
#endif

#include "kernels.h"

namespace tianquan {
namespace scalar {
extern const Kernels kKernels;
}
#if defined(TIANQUAN_HAS_AVX2)
namespace avx2 {
extern const Kernels kKernels;
}

// GCC before 11 and clang before 18 do not know the name for __builtin_cpu_supports.
static bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

#if defined(TIANQUAN_HAS_AVX512_VNNI)
namespace avx512_vnni {
extern const Kernels kKernels;
}
#endif

// __builtin_cpu_supports also asks whether the system saves the registers (XGETBV).
const Kernels* find_kernels(const char* isa) {
  if (std::strcmp(isa, "scalar") == 0) return &scalar::kKernels;
#if defined(TIANQUAN_HAS_AVX2)
  if (std::strcmp(isa, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      has_f16c()) {
    return &avx2::kKernels;
  }
#endif
#if defined(TIANQUAN_HAS_AVX512_VNNI)
  if (std::strcmp(isa, "avx512_vnni") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && find_kernels("avx2")) {
    return &avx512_vnni::kKernels;
  }
#endif
  return nullptr;
}

}  // namespace tianquan
