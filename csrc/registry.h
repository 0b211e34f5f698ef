// The grid: columns are the three operators, rows are implementations, each one algorithm for one instruction set
// or one generation of GPUs.
#pragma once

#include "conv.h"
#include "epilogue.h"
#include "plan.h"

#include <string>
#include <vector>

namespace torchconv {

enum class Op : uint8_t { forward, grad_input, grad_weight };

const char* device_name(Device device);  // "cpu", "cuda"

struct Implementation {
  const char* name = nullptr;                // "cpu.reference"
  Device device = Device::cpu;               // of its operands and its result
  bool (*available)() = nullptr;             // whether this machine can run it
  bool (*suits)(const Conv&, Op) = nullptr;  // whether it is likely to be faster than the implementations after it
  const char* supported = "";                // the problems that it supports, for messages
  const char* suited = "";                   // the problems that it suits, for messages

  // Plans an operator. False if the implementation does not support the problem.
  bool (*plan)(const Conv&, Op, AnyPlan&) = nullptr;
  std::string (*describe)(const AnyPlan&, Op) = nullptr;

  // The operators, which run a plan of theirs; null where the implementation lacks one.
  void (*forward)(const AnyPlan&, const void* x, const void* w, void* y, const Epilogue&) = nullptr;
  void (*grad_input)(const AnyPlan&, const void* y, const void* w, void* x) = nullptr;
  void (*grad_weight)(const AnyPlan&, const void* x, const void* y, void* w) = nullptr;

  bool has(Op op) const {
    return op == Op::forward      ? forward != nullptr
           : op == Op::grad_input ? grad_input != nullptr
                                  : grad_weight != nullptr;
  }
  // Plans an operator if this machine can run the implementation, and it is for the problem's device and supports the
  // problem.
  bool can_plan(const Conv& conv, Op op, AnyPlan& to) const {
    return device == conv.device && has(op) && available() && plan(conv, op, to);
  }
};

// All implementations, in the order in which they are tried. The last one of each device supports every problem.
const std::vector<Implementation>& implementations();

// The first available implementation of the problem's device that supports and suits the problem. The choice depends on
// the problem alone, and not on the batch size, so that the result of a sample does not depend on the other samples.
// (grad_weight is a reduction over the batch.)
//
// `names` is empty or a comma-separated list:
//   a name    selects this implementation if it supports the problem; other devices' are skipped
//   a part    of names selects, of the implementations that contain it, the first that supports and suits the problem,
//             or else the first that supports it
//   !part     excludes all implementations that contain the part
// Names and parts are tried in order. Fills `plan` with the plan of the chosen implementation. Throws
// std::runtime_error if no implementation is left.
const Implementation& choose(const Conv& conv, Op op, const std::string& names, AnyPlan& plan);

// Translates a name of version 0.1, or a part of one, to today's; returns other names unchanged.
std::string current_name(std::string name);

// Why `choose` skips this implementation of the problem's device when no names are given; empty if it does not.
std::string why_not(const Implementation& row, const Conv& conv, Op op);

}  // namespace torchconv
