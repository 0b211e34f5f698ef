// CPU feature detection: the single table of CPUID queries. An instruction set lists the features of its target region
// by their compiler names (targets/) and is available on machines that have all of them.
#pragma once

#include <cstdint>
#include <iterator>
#include <string_view>

namespace torchconv::cpu {

enum class CpuidRegister : uint8_t { eax, ebx, ecx, edx };

// One CPU feature: its CPUID bit, and the register state that the operating system must save for it.
struct CpuFeature {
  std::string_view name;  // as spelled in GCC's and Clang's target("...")
  uint32_t leaf, subleaf;
  CpuidRegister in;
  int bit;
  uint32_t state;  // required bits of XCR0; 0 if the feature uses no vector registers
};

// XCR0 bits. For ymm: SSE and AVX state. For zmm: also opmask, ZMM_Hi256 and Hi16_ZMM. For AMX tiles: also their
// configuration and their data.
constexpr uint32_t saves_ymm = 0x06, saves_zmm = 0xe6, saves_tiles = 0x600e6;

inline constexpr CpuFeature cpu_feature_table[] = {
    {"prfchw", 0x80000001, 0, CpuidRegister::ecx, 8, 0},     {"fma", 1, 0, CpuidRegister::ecx, 12, saves_ymm},
    {"f16c", 1, 0, CpuidRegister::ecx, 29, saves_ymm},       {"avx2", 7, 0, CpuidRegister::ebx, 5, saves_ymm},
    {"avx512f", 7, 0, CpuidRegister::ebx, 16, saves_zmm},    {"avx512dq", 7, 0, CpuidRegister::ebx, 17, saves_zmm},
    {"avx512bw", 7, 0, CpuidRegister::ebx, 30, saves_zmm},   {"avx512vl", 7, 0, CpuidRegister::ebx, 31, saves_zmm},
    {"avx512bf16", 7, 1, CpuidRegister::eax, 5, saves_zmm},  {"amx-tile", 7, 0, CpuidRegister::edx, 24, saves_tiles},
    {"amx-bf16", 7, 0, CpuidRegister::edx, 22, saves_tiles},
};

// A set of features: bit i stands for entry i of cpu_feature_table.
using CpuFeatures = uint32_t;

// The set that holds the feature called `name`.
constexpr CpuFeatures cpu_feature(std::string_view name) {
  for (CpuFeatures i = 0; i < std::size(cpu_feature_table); ++i)
    if (cpu_feature_table[i].name == name) return CpuFeatures(1) << i;
  throw "a feature that is not in the table";  // a compile error in a constant expression
}

// The set of all features in a comma-separated list; empty for an empty list.
constexpr CpuFeatures cpu_features_in(std::string_view names) {
  CpuFeatures features = 0;
  while (!names.empty()) {
    const size_t end = names.find(',');
    features |= cpu_feature(names.substr(0, end));
    names = end == names.npos ? "" : names.substr(end + 1);
  }
  return features;
}

// The features of this machine. They are queried on the first call and then cached.
CpuFeatures cpu_features();

}  // namespace torchconv::cpu
