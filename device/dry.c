/* dry.c: operations as time. One law for all: launch + max(bytes / bandwidth, operations / peak). */
#include "device/dry.h"

#include <math.h>
#include <stdlib.h>

enum {
    ATTEND_FEW = 16, /* query rows a KV head up to which attention is bound by reading (math/simd_attend_few.h) */
    HADAMARD_PASSES = 3
};

typedef struct dry {
    device device; /* first */
    const rs_rates *rates;
    virtual_clock *clock;
} dry;

static const rs_rates *rates_of(const device *d) {
    return ((const dry *)d)->rates;
}

static void spend(device *d, cost what, double seconds) {
    virtual_spend(((dry *)d)->clock, what, seconds);
}

/* Work by rate, where a rate of 0 means that nothing is known to take time. */
static double takes(double work, double rate) {
    return rate > 0 ? work / rate : 0;
}

/* The rate of a format; where it is not known, that of one known for sure to be slower or as fast: the least of all. */
static double rate_of(const double rates[RS_WEIGHT_FORMATS], format f) {
    if (rates[f] > 0) return rates[f];
    double least = 0;
    for (int i = 0; i < RS_WEIGHT_FORMATS; i++) {
        if (rates[i] > 0 && (least == 0 || rates[i] < least)) least = rates[i];
    }
    return least;
}

double dry_product_s(const rs_rates *r, format f, size_t rows, size_t cols, size_t tokens) {
    double bytes = (double)rows * (double)format_bytes(f, cols);
    double outputs = (double)rows * (double)tokens, flop = 2 * outputs * (double)cols;
    bool few = tokens <= FEW_TOKENS;
    const double *peaks = few ? r->weights_few_flop_per_s : r->weights_many_flop_per_s;
    return fmax(takes(bytes, rate_of(r->weights_bytes_per_s, f)), takes(flop, rate_of(peaks, f))) +
           takes(outputs, few ? r->rows_per_s : r->outputs_per_s);
}

double dry_attend_byte_s(const rs_rates *r, rs_kv_format kv, size_t rows) {
    static const double at[RS_QUERIES] = RS_QUERIES_AT;
    const double *rate = r->attend_bytes_per_s[kv];
    int i = 0;
    while (i + 2 < RS_QUERIES && (double)rows > at[i + 1]) i++;
    double low = takes(1, rate[i]), high = takes(1, rate[i + 1]);
    double way = ((double)rows - at[i]) / (at[i + 1] - at[i]); /* beyond the last point it goes on straight */
    return low + way * (high - low);
}

/* An elementwise operation that reads and writes so many floats. */
static void vector(device *d, cost what, size_t floats) {
    const rs_rates *r = rates_of(d);
    if (floats == 0) return;
    spend(d, what, r->small_s + takes((double)floats * sizeof(float), r->vector_bytes_per_s));
}

/* ---- Operations ---- */

static void embed(device *d, const matrix *table, const int32_t *tokens, size_t n, float scale, float *x) {
    (void)tokens, (void)scale, (void)x;
    vector(d, COST_REST, 2 * n * table->cols);
}

static void products(device *d, const product *list, size_t n, size_t tokens) {
    const rs_rates *r = rates_of(d);
    size_t rows = 0;
    double seconds = r->launch_s;
    if (tokens > FEW_TOKENS) seconds += takes((double)tokens * (double)list[0].w->cols, r->inputs_per_s);
    for (size_t i = 0; i < n; i++) {
        rows += list[i].w->rows;
        seconds += dry_product_s(r, list[i].w->format, list[i].w->rows, list[i].w->cols, tokens);
    }
    if (rows > 0 && tokens > 0) spend(d, COST_WEIGHTS, seconds);
}

static void matmul(device *d, const product *list, size_t n, const float *x, size_t x_stride, size_t tokens) {
    (void)x, (void)x_stride;
    products(d, list, n, tokens);
}

static void matmul_add(device *d, const matrix *w, const float *x, size_t x_stride, size_t tokens, float *y) {
    (void)x, (void)x_stride;
    products(d, &(product){w, NULL, y}, 1, tokens);
}

static void matmul_gate(device *d, activation act, const matrix *gate, const matrix *up, const float *x, size_t tokens,
                        float *y, size_t y_stride) {
    (void)act, (void)x, (void)y_stride;
    products(d, (product[]){{gate, NULL, y}, {up, NULL, y}}, 2, tokens);
}

static void rms_norm(device *d, const float *x, const float *weight, float eps, float *y, size_t rows, size_t n) {
    (void)x, (void)weight, (void)eps, (void)y;
    vector(d, COST_REST, 2 * rows * n);
}

static void rope(device *d, float *x, const float *cos, const float *sin, size_t rows, size_t heads, size_t head_dim,
                 size_t n_rot, rope_pairs pairs) {
    (void)x, (void)cos, (void)sin, (void)n_rot, (void)pairs;
    vector(d, COST_REST, 2 * rows * heads * head_dim);
}

static void add(device *d, float *y, const float *x, size_t n) {
    (void)y, (void)x;
    vector(d, COST_REST, 3 * n);
}

static void scale(device *d, float *y, float s, size_t n) {
    (void)y, (void)s;
    vector(d, COST_REST, 2 * n);
}

static void hadamard(device *d, float *x, size_t rows, size_t n) {
    (void)x;
    vector(d, COST_REST, 2 * HADAMARD_PASSES * rows * n);
}

static void append(device *d, const append_args *a) {
    vector(d, COST_KV, 4 * a->rows * a->kv_heads * a->head_dim);
}

static void attend_begin(device *d, attend_state state, size_t rows, size_t heads, size_t head_dim) {
    (void)state;
    vector(d, COST_KV, rows * heads * head_dim);
}

/* How many of the rows (positions ascend) are at or behind `position`. */
static size_t rows_from(const attend_args *a, int64_t position) {
    size_t low = 0, high = a->rows;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (a->position[middle] >= position) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return a->rows - low;
}

/* Tokens that all rows together see of the pages, to half a page's edge. */
static double seen_by_rows(const attend_args *a) {
    double seen = 0;
    for (size_t i = 0; i < a->n_pages; i++) {
        const page_ref *p = &a->pages[i];
        size_t rows = rows_from(a, p->position);
        if (a->window > 0) rows -= rows_from(a, (int64_t)p->position + p->count - 1 + a->window);
        seen += (double)rows * p->count;
    }
    return seen;
}

/* Tokens of the pages that any row sees. */
static double seen_by_any(const attend_args *a) {
    double seen = 0;
    int64_t last = a->position[a->rows - 1];
    int64_t first = a->window > 0 ? (int64_t)a->position[0] + 1 - a->window : 0;
    for (size_t i = 0; i < a->n_pages; i++) {
        int64_t begin = a->pages[i].position, end = begin + a->pages[i].count;
        if (begin < first) begin = first;
        if (end > last + 1) end = last + 1;
        if (end > begin) seen += (double)(end - begin);
    }
    return seen;
}

static void attend(device *d, const attend_args *a) {
    const rs_rates *r = rates_of(d);
    if (a->rows == 0 || a->heads == 0 || a->n_pages == 0) return;
    size_t queries = a->rows * (a->heads / a->kv_heads);
    double plane_token = 1.0 / PAGE_TOKENS, seconds;
    if (queries <= ATTEND_FEW) {
        double k = (double)kv_plane_bytes(a->kv.k, a->head_dim) * dry_attend_byte_s(r, a->kv.k, queries);
        double v = (double)kv_plane_bytes(a->kv.v, a->head_dim) * dry_attend_byte_s(r, a->kv.v, queries);
        seconds = seen_by_any(a) * (double)a->kv_heads * (k + v) * plane_token;
    } else {
        double flop = 2.0 * seen_by_rows(a) * (double)a->heads * (double)a->head_dim; /* of K, and again of V */
        seconds = takes(flop, r->attend_many_flop_per_s[a->kv.k]) + takes(flop, r->attend_many_flop_per_s[a->kv.v]);
    }
    spend(d, COST_KV, r->launch_s + seconds);
}

static void attend_finish(device *d, attend_state state, float *lse, size_t rows, size_t heads, size_t head_dim) {
    (void)state, (void)lse;
    vector(d, COST_KV, 2 * rows * heads * head_dim);
}

static void merge(device *d, float *o, float *lse, const float *other_o, const float *other_lse, size_t rows,
                  size_t heads, size_t head_dim) {
    (void)o, (void)lse, (void)other_o, (void)other_lse;
    vector(d, COST_KV, 3 * rows * heads * head_dim);
}

static void dry_close(device *d) {
    free(d);
}

static const device_ops dry_ops = {
    dry_close, embed,    matmul, matmul_add,   matmul_gate, rms_norm,      rope,  add,
    scale,     hadamard, append, attend_begin, attend,      attend_finish, merge,
};

rs_status dry_open(const rs_rates *rates, virtual_clock *clock, device **out) {
    dry *d = calloc(1, sizeof *d);
    if (d == NULL) return status_fail(RS_NO_MEMORY, "no memory for a device");
    *d = (dry){.device.ops = &dry_ops, .rates = rates, .clock = clock};
    *out = &d->device;
    return RS_OK;
}
