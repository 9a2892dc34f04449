// Chunks of weights in shared memory, copied asynchronously.
#pragma once

#include "bof4/cuda/bof4-async-copy.cuh"

#include <cstdint>

// Makes the compiler keep a value in a register. Else it computes places in the weights again in every iteration, which
// costs a third of the instructions of a loop that is bound by them.
static __device__ __forceinline__ void bof4_keep(int32_t & value) {
    asm volatile("" : "+r"(value));
}
static __device__ __forceinline__ void bof4_keep(const uint8_t *& value) {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+l"(value));
#else
    asm volatile("" : "+r"(value));
#endif // defined(__CUDA_ARCH__)
}

// The same for an address in shared memory.
static __device__ __forceinline__ uint8_t * bof4_kept_shared(uint8_t * shared) {
#if defined(__CUDA_ARCH__) && !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
    uint32_t address = (uint32_t) __cvta_generic_to_shared(shared);
    asm volatile("" : "+r"(address));
    return (uint8_t *) __cvta_shared_to_generic(address);
#else
    return shared;
#endif // defined(__CUDA_ARCH__) && !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
}

// Chunks of S rows in the shared memory of a warp, one for each stage of a pipeline. A chunk is `chunk_bytes` bytes of
// each row and `lead` bytes before them, and lies in `pieces` pieces of 16 bytes. aligned: rows begin at multiples of 16
// bytes, so that all chunks of one number have the same place in their first pieces.
template <int S, int chunk_bytes, int lead, int pieces, bool aligned> struct bof4_staged_rows {
    static constexpr int row_bytes = 16 * pieces, stage_bytes = S * row_bytes, stages = 3;
    static constexpr int copies = (S * pieces + 31) / 32; // of a lane, for a chunk of all rows
    // reads may begin in the last piece and end behind it
    static constexpr int bytes = stages * stage_bytes + 16;

    uint8_t * staged;
    const uint8_t * sources[copies]; // of this lane, in chunk 0
    int begins[copies];              // their places in the row
    int n_bytes;                     // of a row
    uint32_t places[S];              // of the rows in 16 bytes
    int to;                          // first byte of this lane in a stage

    // row_at(s): address of row s
    template <typename function>
    __device__ __forceinline__ bof4_staged_rows(function row_at, int n_bytes, int lane, uint8_t * staged)
        : staged(bof4_kept_shared(staged)),
          n_bytes(n_bytes),
          to(16 * lane) {
#pragma unroll
        for (int k = 0; k < copies; ++k) {
            const int i = lane + 32 * k;
            // none: behind the end of the row, wherever a piece begins
            begins[k] = i < S * pieces ? 16 * (i % pieces) - lead : n_bytes + 16;
            sources[k] = row_at(min(i / pieces, S - 1)) + begins[k];
            bof4_keep(begins[k]);
            bof4_keep(sources[k]);
        }
#pragma unroll
        for (int s = 0; s < S; ++s) {
            places[s] = aligned ? 0 : (uint32_t) (uintptr_t) row_at(s) & 15;
        }
    }

    // Byte of the row's chunk in its first piece, `lead` not counted.
    __device__ __forceinline__ int place(int s, int chunk) const {
        return (int) ((places[s] + (uint32_t) (chunk * chunk_bytes)) & 15);
    }

    // stage: a multiple of stage_bytes.
    __device__ __forceinline__ void copy(int stage, int chunk) const {
        int at = chunk * chunk_bytes;
        if (aligned) {
            at -= at & 15;
        }
#pragma unroll
        for (int k = 0; k < copies; ++k) {
            const uint8_t * source = sources[k] + at;
            int begin = at + begins[k];
            if (!aligned) {
                const int place = (int) ((uintptr_t) source & 15);
                source -= place;
                begin -= place;
            }
            // pieces without a byte of the row may be outside of the weights
            if ((uint32_t) (begin + 15) < (uint32_t) (n_bytes + 15)) {
                bof4_copy_16<128>(staged + (stage + to) + 16 * 32 * k, source);
            }
        }
    }

    // First piece of row s.
    __device__ __forceinline__ const uint8_t * row(int stage, int s) const { return staged + stage + s * row_bytes; }
};
