#pragma once

#include <cstdint>

// How many threads torch_get_num_threads tells of.
extern uint32_t pool_threads;
