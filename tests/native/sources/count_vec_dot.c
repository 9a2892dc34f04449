// One vec_dot, called once, for counters of instructions. Nothing but the kernel depends on N, so that the difference
// of two counts is the kernel's.
//
//   count_vec_dot TYPE N         one product of N weights, for valgrind and qemu
//   count_vec_dot TYPE N step    the same, and prints the number of instructions of a process that executes it in
//                                single steps: for instructions that valgrind does not know
//
// Exit code 77 where the system forbids single steps.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "cpu/bof4-vec-dot.h"
#include "cpu/bof4-prefetch.h"
#include "ggml-impl.h"
#include "quants.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

// Row kernels as they are where prefetching does not help.
int64_t bof4_prefetch_rows_distance(enum ggml_type type) {
    (void) type;
    return 0;
}

// what ggml-cpu.c and ggml.c would provide
float ggml_table_f32_f16[1 << 16];
size_t ggml_row_size(enum ggml_type type, int64_t ne) {
    (void) type;
    return (size_t) ne;
}

typedef void (*vec_dot)(int n, float * s, size_t bs, const void * x, size_t bx, const void * y, size_t by, int nrc);

static const struct {
    const char * name;
    vec_dot f;
} kernels[] = {
#define KERNEL(NAME, name) { #NAME, ggml_vec_dot_##name },
    BOF4_TYPES(KERNEL){ "IQ4_NL", ggml_vec_dot_iq4_nl_q8_0 },
    { "Q4_K", ggml_vec_dot_q4_K_q8_K },
};

enum { MAX_N = 4096 };

// zeros: the number of instructions does not depend on the values
static char x[2 * MAX_N], y[2 * MAX_N];

static int count_steps(vec_dot f, int n) {
    const pid_t child = fork();
    if (child == 0) {
        float s;
        if (ptrace(PTRACE_TRACEME, 0, 0, 0) != 0) {
            _exit(77);
        }
        raise(SIGSTOP);
        f(n, &s, 0, x, 0, y, 0, 1);
        _exit(0);
    }
    int status;
    long steps = 0;
    waitpid(child, &status, 0);
    while (WIFSTOPPED(status)) {
        if (ptrace(PTRACE_SINGLESTEP, child, 0, 0) != 0) {
            kill(child, SIGKILL);
            return 77;
        }
        ++steps;
        waitpid(child, &status, 0);
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    }
    printf("%ld\n", steps);
    return 0;
}

int main(int argc, char ** argv) {
    const int n = argc > 2 ? atoi(argv[2]) : 0;
    for (size_t i = 0; n > 0 && n <= MAX_N && i < sizeof(kernels) / sizeof(*kernels); ++i) {
        if (strcmp(argv[1], kernels[i].name) == 0) {
            if (argc > 3) {
                return count_steps(kernels[i].f, n);
            }
            float s;
            kernels[i].f(n, &s, 0, x, 0, y, 0, 1);
            return 0;
        }
    }
    fprintf(stderr, "usage: count_vec_dot TYPE N [step]\n");
    return 2;
}
