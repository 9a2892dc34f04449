// The instructions of AMX with int8, emulated for processors without them: linked into a program, it catches SIGILL,
// decodes the instruction as the Intel SDM defines it (volume 2, "LDTILECFG" to "TILEZERO"), and resumes behind it.
// Everything else that is illegal remains so.

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>

namespace {

struct configuration {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(configuration) == 64, "as in memory");

thread_local configuration current;
thread_local uint8_t tiles[8][16][64];

enum { NO_PREFIX = 0, PREFIX_66 = 1, PREFIX_F3 = 2, PREFIX_F2 = 3 };

// General registers in the order of their numbers.
const int REGISTERS[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
    REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

// An instruction with a VEX prefix of three bytes.
struct instruction {
    int map, prefix, opcode, reg, rm, source; // source: vvvv
    bool has_memory, has_sib;
    uint64_t address; // base and displacement
    int64_t stride;   // index times scale, 0 without one
    int length;
};

bool decode(const uint8_t * at, const greg_t * registers, instruction & i) {
    if (at[0] != 0xc4) {
        return false;
    }
    // R, X and B, which extend register numbers, and vvvv are stored inverted
    const int r = ~at[1] >> 7 & 1, x = ~at[1] >> 6 & 1, b = ~at[1] >> 5 & 1;
    i.map = at[1] & 0x1f;
    i.prefix = at[2] & 3;
    i.source = ~at[2] >> 3 & 15;
    i.opcode = at[3];
    const int mod = at[4] >> 6;
    i.reg = (at[4] >> 3 & 7) | r << 3;
    i.rm = (at[4] & 7) | b << 3;
    i.has_memory = mod != 3;
    i.has_sib = i.has_memory && (at[4] & 7) == 4;
    i.address = 0;
    i.stride = 0;
    i.length = 5;
    if (!i.has_memory) {
        return true;
    }
    int base = i.rm;
    if (i.has_sib) {
        const uint8_t sib = at[i.length++];
        const int index = (sib >> 3 & 7) | x << 3;
        base = (sib & 7) | b << 3;
        i.stride = index == 4 ? 0 : (int64_t) registers[REGISTERS[index]] << (sib >> 6);
    }
    const bool no_base = mod == 0 && (base & 7) == 5;
    if (mod == 1) {
        i.address = (uint64_t) (int64_t) (int8_t) at[i.length];
        i.length += 1;
    } else if (mod == 2 || no_base) {
        int32_t displacement;
        memcpy(&displacement, at + i.length, sizeof(displacement));
        i.address = (uint64_t) (int64_t) displacement;
        i.length += 4;
    }
    if (no_base && !i.has_sib) {
        i.address += (uint64_t) at + i.length; // relative to the next instruction
    } else if (!no_base) {
        i.address += (uint64_t) registers[REGISTERS[base]];
    }
    return true;
}

bool load_configuration(const instruction & i) {
    configuration c;
    memcpy(&c, (const void *) i.address, sizeof(c));
    if (c.palette > 1) {
        return false;
    }
    for (int t = 0; t < 16; ++t) {
        if (c.palette == 1 && (c.rows[t] > (t < 8 ? 16 : 0) || c.row_bytes[t] > (t < 8 ? 64 : 0))) {
            return false;
        }
    }
    current = c.palette == 0 ? configuration() : c;
    memset(tiles, 0, sizeof(tiles));
    return true;
}

bool move_tile(const instruction & i, bool to_memory) {
    if (current.palette == 0 || !i.has_sib) {
        return false;
    }
    uint8_t old[16][64] = {};
    for (int r = 0; r < current.rows[i.reg]; ++r) {
        void * p = (void *) (i.address + r * i.stride);
        to_memory ? memcpy(p, tiles[i.reg][r], current.row_bytes[i.reg]) : memcpy(old[r], p, current.row_bytes[i.reg]);
    }
    if (!to_memory) {
        memcpy(tiles[i.reg], old, sizeof(old));
    }
    return true;
}

// The products of a dword of A and one of B, added to one of C. Each byte is signed or not.
template <typename A, typename B>
bool add_products(const instruction & i) {
    const int c = i.reg, a = i.rm, b = i.source;
    if (current.palette == 0 || a == b || a == c || b == c || current.rows[c] != current.rows[a] ||
        current.row_bytes[c] != current.row_bytes[b] || current.row_bytes[a] != 4 * current.rows[b]) {
        return false;
    }
    for (int m = 0; m < current.rows[c]; ++m) {
        for (int k = 0; k < current.row_bytes[a] / 4; ++k) {
            for (int n = 0; n < current.row_bytes[c] / 4; ++n) {
                uint32_t sum;
                memcpy(&sum, tiles[c][m] + 4 * n, sizeof(sum));
                for (int j = 0; j < 4; ++j) {
                    sum += (uint32_t) ((int32_t) (A) tiles[a][m][4 * k + j] * (int32_t) (B) tiles[b][k][4 * n + j]);
                }
                memcpy(tiles[c][m] + 4 * n, &sum, sizeof(sum));
            }
        }
    }
    return true;
}

bool execute(const instruction & i) {
    if (i.map != 2) {
        return false;
    }
    switch (i.opcode << 2 | i.prefix) {
        case 0x49 << 2 | NO_PREFIX:
            if (i.has_memory) {
                return load_configuration(i);
            }
            current = configuration(); // tilerelease
            memset(tiles, 0, sizeof(tiles));
            return true;
        case 0x49 << 2 | PREFIX_66: memcpy((void *) i.address, &current, sizeof(current)); return i.has_memory;
        case 0x49 << 2 | PREFIX_F2: memset(tiles[i.reg], 0, sizeof(tiles[0])); return !i.has_memory && current.palette;
        case 0x4b << 2 | PREFIX_F2:
        case 0x4b << 2 | PREFIX_66: return move_tile(i, false);
        case 0x4b << 2 | PREFIX_F3: return move_tile(i, true);
        case 0x5e << 2 | PREFIX_F2: return add_products<int8_t, int8_t>(i);
        case 0x5e << 2 | PREFIX_F3: return add_products<int8_t, uint8_t>(i);
        case 0x5e << 2 | PREFIX_66: return add_products<uint8_t, int8_t>(i);
        case 0x5e << 2 | NO_PREFIX: return add_products<uint8_t, uint8_t>(i);
        default:                    return false;
    }
}

void on_illegal_instruction(int, siginfo_t *, void * context) {
    greg_t * registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
    instruction i;
    if (!decode((const uint8_t *) registers[REG_RIP], registers, i) || !execute(i)) {
        signal(SIGILL, SIG_DFL); // the instruction is executed again, and ends the program
        return;
    }
    registers[REG_RIP] += i.length;
}

[[gnu::constructor]] void emulate() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, nullptr);
}

} // namespace
