/* kernels.c: which kernel tables exist and which this CPU runs. */
#include "math/kernels.h"

#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "math/kernels_sets.h"

#ifdef RS_SET_AVX2
#include <cpuid.h>

static bool has_avx2(void) {
    unsigned a, b, c, d; /* clang's builtin does not know f16c. */
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#ifdef RS_SET_AVX_VNNI
static bool has_avx_vnni(void) {
    enum { AVX_VNNI = 1 << 4 }; /* CPUID 7.1, EAX */
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & AVX_VNNI) != 0;
}
#endif

#ifdef RS_SET_AVX512
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

/* Linux gives a process the 8 KiB of tiles in each thread's state only when it asks, once for all its threads. */
static bool ask_for_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static bool has_tiles(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 }; /* CPUID 7, EDX; gcc and clang name them differently. */
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & AMX_BF16) != 0 && (d & AMX_TILE) != 0;
}

static bool has_amx(void) {
    enum { UNKNOWN, NO, YES };
    static atomic_int answer = UNKNOWN;
    if (answer == UNKNOWN) {
        bool has = has_avx512() && __builtin_cpu_supports("avx512bf16") && has_tiles() && ask_for_tiles();
        answer = has ? YES : NO;
    }
    return answer == YES;
}
#endif

#ifdef RS_SET_NEON
#include <asm/hwcap.h>
#include <sys/auxv.h>

static bool has_dot(void) {
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}

static bool has_i8mm(void) {
    return has_dot() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
}
#endif

static bool always(void) {
    return true;
}

/* Slowest first. CMake says which were built (cmake/kernels.cmake). */
/* clang-format off */
static const struct {
    const kernels *table;
    bool (*runs)(void);
    bool named_only; /* never the best: it runs when it is named */
} sets[] = {
    {&kernels_ref, always, false},
    {&kernels_portable, always, false},
#ifdef RS_SET_AVX2
    {&kernels_avx2, has_avx2, false},
#endif
#ifdef RS_SET_AVX_VNNI
    {&kernels_avx_vnni, has_avx_vnni, false},
#endif
#ifdef RS_SET_AVX512
    {&kernels_avx512, has_avx512, false},
    {&kernels_amx, has_amx, true},
#endif
#ifdef RS_SET_NEON
    {&kernels_neon, always, false},
    {&kernels_neon_dot, has_dot, false},
    {&kernels_neon_i8mm, has_i8mm, false},
#endif
};
/* clang-format on */
enum { SETS = sizeof sets / sizeof sets[0] };

const kernels *kernels_at(size_t index) {
    for (size_t i = 0; i < SETS; i++) {
        if (sets[i].runs() && index-- == 0) return sets[i].table;
    }
    return NULL;
}

rs_status kernels_find(const char *name, const kernels **out) {
    char names[128] = "";
    const kernels *found = NULL;
    for (size_t i = 0; i < SETS; i++) {
        const kernels *k = sets[i].table;
        if (!sets[i].runs()) continue;
        if (name == NULL ? !sets[i].named_only : strcmp(name, k->name) == 0) found = k;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i == 0 ? "" : ", ", k->name);
    }
    if (found == NULL) return status_fail(RS_UNSUPPORTED, "no kernels '%s' on this CPU; it runs %s", name, names);
    *out = found;
    return RS_OK;
}

size_t kv_plane_bytes(rs_kv_format kv, size_t head_dim) {
    size_t values = PAGE_TOKENS * head_dim;
    return plane_values_at(kv, head_dim) + (kv == RS_KV_F16 ? 2 * values : kv == RS_KV_Q8_0 ? values : values / 2);
}

size_t matmul_scratch_floats(size_t cols) {
    /* Few tokens: their rows, padded to whole groups. Many: panels of PRODUCT_K columns whatever their number. */
    size_t few = (cols + GROUP - 1) / GROUP * (GROUP + LANES_MAX) * FEW_TOKENS + FEW_ROWS * PRODUCT_K;
    size_t many = (MATMUL_ROWS + LANES_MAX) * PRODUCT_K;
    return few > many ? few : many;
}

static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

size_t matmul_packed_floats(size_t tokens, size_t cols) {
    return round_up(tokens, PACK_TOKENS) * round_up(cols, TILE_COLS); /* High and low half take 2 bytes each. */
}

size_t matmul_packed_scratch_floats(size_t tokens) {
    /* Sums, panels of w, and rows of w on their way there: one as floats, TILE_ROWS split. */
    return round_up(tokens, PACK_TOKENS) * PACKED_ROWS + (PACKED_ROWS + 1 + TILE_ROWS) * PRODUCT_K;
}

size_t attend_scratch_floats(size_t rows, size_t head_dim) {
    size_t few = rows * (HEAD_DIM_MAX / 2 + head_dim / PLANE_BLOCK + 3);
    size_t many = PAGE_TOKENS * head_dim + PAGE_TOKENS * attend_v_stride(head_dim);
    return rows * PAGE_TOKENS + (few > many ? few : many);
}
