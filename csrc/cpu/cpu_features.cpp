// Queries the features in cpu_feature_table with CPUID and XGETBV. Other architectures than x86-64 report none.
#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
extern "C" int arch_prctl(int code, unsigned long argument);  // of the C library, which declares it in no header
#endif

namespace torchconv::cpu {

namespace {

#if defined(__x86_64__)

// The low half of XCR0: the register state that the operating system saves. 0 if XGETBV is not enabled (OSXSAVE).
uint32_t saved_registers() {
  constexpr uint32_t osxsave = 1u << 27;
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & osxsave)) return 0;
  __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return eax;
}

// Whether this process may use AMX tiles. Linux grants them on request, to all threads and to forked children. It
// refuses, for example, while a thread has an alternate signal stack that is too small for them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr unsigned long tile_data = 18;     // XFEATURE_XTILE_DATA
  return arch_prctl(request_permission, tile_data) == 0;
#else
  return false;
#endif
}

// A feature counts only if CPUID reports it and the operating system saves its registers.
CpuFeatures query() {
  uint32_t saved = saved_registers();
  if ((saved & saves_tiles) == saves_tiles && !may_use_tiles()) saved &= saves_zmm;
  CpuFeatures found = 0;
  for (const CpuFeature& feature : cpu_feature_table) {
    uint32_t registers[4];  // eax, ebx, ecx, edx
    if ((saved & feature.state) == feature.state &&
        __get_cpuid_count(feature.leaf, feature.subleaf, &registers[0], &registers[1], &registers[2], &registers[3]) &&
        registers[int(feature.in)] >> feature.bit & 1)
      found |= cpu_feature(feature.name);
  }
  return found;
}

#else

CpuFeatures query() { return 0; }

#endif

}  // namespace

CpuFeatures cpu_features() {
  static const CpuFeatures found = query();
  return found;
}

}  // namespace torchconv::cpu
