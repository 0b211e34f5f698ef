#include "../implementation.h"
#include "reference.h"

namespace torchconv {

const std::vector<Implementation>& implementations() {
  static const std::vector<Implementation> rows = {
      cpu::reference(),
  };
  return rows;
}

}  // namespace torchconv
