// The thread pool that pool.cpp puts in place of torch's.
#pragma once

#include <cstdint>

// The number of threads that torch_get_num_threads reports.
extern uint32_t pool_threads;
