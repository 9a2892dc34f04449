// arc4random for C libraries that have none (glibc before 2.36). The portable build contains the compiler's libstdc++,
// whose std::random_device calls it, and is to run on older systems than the one that it was built on.
#include <stdlib.h>

#if defined(__GLIBC__)

#include <stdint.h>
#include <unistd.h>

__attribute__((visibility("default"))) uint32_t arc4random(void) {
    uint32_t value = 0;
    if (getentropy(&value, sizeof(value)) != 0) {
        abort();
    }
    return value;
}

#endif
