#include "../implementation.h"
#include "reference.h"
#include "simd.h"

namespace torchconv {

const std::vector<Implementation>& implementations() {
  static const std::vector<Implementation> rows = [] {
    std::vector<Implementation> all;
    for (const auto& of : {cpu::avx512_rows, cpu::avx2_rows, cpu::portable_rows})
      for (const Implementation& row : of()) all.push_back(row);
    all.push_back(cpu::reference());
    return all;
  }();
  return rows;
}

}  // namespace torchconv
