// Huge pages for weights.
#pragma once

#include <cstddef>

// Backs newly allocated memory with huge pages, as far as the kernel provides them quickly.
void bof4_request_huge_pages(void * base, size_t size);
