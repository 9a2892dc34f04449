// Huge pages for weights.
#pragma once

#include <cstddef>

// Backs fresh memory with huge pages where the system has them at hand.
void bof4_request_huge_pages(void * base, size_t size);
