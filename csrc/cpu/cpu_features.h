// What the processor can do: every CPUID query, once. An instruction set names the features of its target region in the
// compiler's words (targets/), and is available where all of them are.
#pragma once

#include <cstdint>
#include <iterator>
#include <string_view>

namespace torchconv::cpu {

enum class CpuidRegister : uint8_t { eax, ebx, ecx, edx };

struct CpuFeature {
  std::string_view name;  // as in target("...") of GCC and Clang
  uint32_t leaf, subleaf;
  CpuidRegister in;
  int bit;
  uint32_t state;  // bits of XCR0: the registers that the operating system must save
};

constexpr uint32_t saves_ymm = 0x06, saves_zmm = 0xe6;

inline constexpr CpuFeature cpu_feature_table[] = {
    {"prfchw", 0x80000001, 0, CpuidRegister::ecx, 8, 0},    {"fma", 1, 0, CpuidRegister::ecx, 12, saves_ymm},
    {"f16c", 1, 0, CpuidRegister::ecx, 29, saves_ymm},      {"avx2", 7, 0, CpuidRegister::ebx, 5, saves_ymm},
    {"avx512f", 7, 0, CpuidRegister::ebx, 16, saves_zmm},   {"avx512dq", 7, 0, CpuidRegister::ebx, 17, saves_zmm},
    {"avx512bw", 7, 0, CpuidRegister::ebx, 30, saves_zmm},  {"avx512vl", 7, 0, CpuidRegister::ebx, 31, saves_zmm},
    {"avx512bf16", 7, 1, CpuidRegister::eax, 5, saves_zmm},
};

// A set of features: bit i is entry i of the table.
using CpuFeatures = uint32_t;

constexpr CpuFeatures cpu_feature(std::string_view name) {
  for (CpuFeatures i = 0; i < std::size(cpu_feature_table); ++i)
    if (cpu_feature_table[i].name == name) return CpuFeatures(1) << i;
  throw "a feature that is not in the table";  // an error of compilation
}

// The features in a list with commas; none in an empty one.
constexpr CpuFeatures cpu_features_in(std::string_view names) {
  CpuFeatures features = 0;
  while (!names.empty()) {
    const size_t end = names.find(',');
    features |= cpu_feature(names.substr(0, end));
    names = end == names.npos ? "" : names.substr(end + 1);
  }
  return features;
}

// What this machine has; queried once.
CpuFeatures cpu_features();

}  // namespace torchconv::cpu
