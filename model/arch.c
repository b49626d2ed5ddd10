/* arch.c: the table of model families, and a file's hyperparameters read into it. */
#include "model/arch.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Facts from the model authors' configurations and the GGUF conventions for them. */
static const arch archs[] = {
    {.name = "llama", .pairs = ROPE_NEIGHBOURS, .act = ACTIVATION_SILU},
    {.name = "qwen2", .pairs = ROPE_HALVES, .act = ACTIVATION_SILU, .qkv_bias = true},
    {.name = "qwen3", .pairs = ROPE_HALVES, .act = ACTIVATION_SILU, .qk_norm = true},
    {.name = "gemma3",
     .pairs = ROPE_HALVES,
     .act = ACTIVATION_GELU_TANH,
     .qk_norm = true,
     .sandwich_norms = true,
     .embed_scaled = true,
     .global_every = 6,
     .local_rope_base = 10000.0f},
};
enum { ARCHS = sizeof archs / sizeof *archs };

/* Limits that no published model comes near, so that products below cannot overflow. */
enum { LAYERS_MAX = 4096, WIDTH_MAX = 1 << 20, HEADS_MAX = 4096, CONTEXT_MAX = 1 << 30 };

static const arch *arch_find(str name) {
    for (size_t i = 0; i < ARCHS; i++) {
        if (str_equal_text(name, archs[i].name)) return &archs[i];
    }
    return NULL;
}

static rs_status unknown_arch(str name) {
    char list[128] = "";
    size_t used = 0;
    for (size_t i = 0; i < ARCHS; i++) {
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", archs[i].name);
    }
    return status_fail(RS_UNSUPPORTED, "architecture \"%.*s\" is not known here; known are: %s",
                       (int)(name.bytes < 64 ? name.bytes : 64), name.data, list);
}

/* The metadata key "<architecture>.<suffix>". */
static const char *key_of(const arch *a, const char *suffix, char buffer[96]) {
    snprintf(buffer, 96, "%s.%s", a->name, suffix);
    return buffer;
}

/* Reads an integer in [low, high]; `fallback` < 0 means that the key is required. */
static rs_status read_uint(const gguf *file, const arch *a, const char *suffix, int64_t fallback, uint64_t low,
                           uint64_t high, uint32_t *out) {
    char buffer[96];
    const char *key = key_of(a, suffix, buffer);
    if (fallback < 0 && !gguf_has(file, key)) return status_fail(RS_BAD_FORMAT, "the file lacks %s", key);
    uint64_t value = (uint64_t)fallback;
    RS_TRY(gguf_get_uint(file, key, &value));
    if (value < low || value > high) {
        return status_fail(RS_BAD_FORMAT, "%s is %llu, expected %llu to %llu", key, (unsigned long long)value,
                           (unsigned long long)low, (unsigned long long)high);
    }
    *out = (uint32_t)value;
    return RS_OK;
}

static rs_status read_float(const gguf *file, const arch *a, const char *suffix, float low, float high, float *value) {
    char buffer[96];
    const char *key = key_of(a, suffix, buffer);
    RS_TRY(gguf_get_float(file, key, value));
    if (!(*value >= low && *value <= high)) {
        return status_fail(RS_BAD_FORMAT, "%s is %g, expected %g to %g", key, (double)*value, (double)low,
                           (double)high);
    }
    return RS_OK;
}

/* Some files give one value per layer; they are accepted when all are equal. */
static rs_status read_per_layer(const gguf *file, const arch *a, const char *suffix, int64_t fallback, uint64_t high,
                                uint32_t layers, uint32_t *out) {
    char buffer[96];
    const char *key = key_of(a, suffix, buffer);
    gguf_array array = {0};
    uint64_t unused = 0;
    if (!gguf_has(file, key) || gguf_get_uint(file, key, &unused) == RS_OK) {
        return read_uint(file, a, suffix, fallback, 1, high, out);
    }
    if (gguf_get_array(file, key, &array) != RS_OK) return gguf_get_uint(file, key, &unused);
    bool integers = array.kind != GGUF_STRING && array.kind != GGUF_F32 && array.kind != GGUF_F64;
    if (!integers || array.count != layers) return status_fail(RS_BAD_FORMAT, "%s is not one number per layer", key);
    int64_t first = gguf_array_int(&array, 0);
    for (uint64_t i = 1; i < array.count; i++) {
        if (gguf_array_int(&array, i) != first) {
            return status_fail(RS_UNSUPPORTED, "%s differs between layers, which is not supported", key);
        }
    }
    if (first < 1 || (uint64_t)first > high) return status_fail(RS_BAD_FORMAT, "%s holds %lld", key, (long long)first);
    *out = (uint32_t)first;
    return RS_OK;
}

static rs_status read_shape(const gguf *file, const arch *a, hparams *h) {
    RS_TRY(read_uint(file, a, "block_count", -1, 1, LAYERS_MAX, &h->layers));
    RS_TRY(read_uint(file, a, "embedding_length", -1, 1, WIDTH_MAX, &h->dim));
    RS_TRY(read_uint(file, a, "context_length", -1, 1, CONTEXT_MAX, &h->context_trained));
    RS_TRY(read_per_layer(file, a, "feed_forward_length", -1, WIDTH_MAX, h->layers, &h->ffn_dim));
    RS_TRY(read_per_layer(file, a, "attention.head_count", -1, HEADS_MAX, h->layers, &h->heads));
    RS_TRY(read_per_layer(file, a, "attention.head_count_kv", h->heads, HEADS_MAX, h->layers, &h->kv_heads));
    RS_TRY(read_uint(file, a, "attention.key_length", h->dim / h->heads, 1, HEAD_DIM_MAX, &h->head_dim));
    uint32_t value_dim = 0;
    RS_TRY(read_uint(file, a, "attention.value_length", h->head_dim, 1, HEAD_DIM_MAX, &value_dim));
    if (value_dim != h->head_dim) {
        return status_fail(RS_UNSUPPORTED, "key heads of %u and value heads of %u values are not supported",
                           h->head_dim, value_dim);
    }
    if (h->heads % h->kv_heads != 0) {
        return status_fail(RS_BAD_FORMAT, "%u query heads do not divide into %u KV heads", h->heads, h->kv_heads);
    }
    if (h->head_dim % 2 != 0) return status_fail(RS_UNSUPPORTED, "a head dimension of %u is odd", h->head_dim);
    RS_TRY(read_uint(file, a, "rope.dimension_count", h->head_dim, 2, h->head_dim, &h->rope_dims));
    if (h->rope_dims % 2 != 0) return status_fail(RS_BAD_FORMAT, "rope.dimension_count %u is odd", h->rope_dims);
    h->norm_eps = 1e-5f;
    RS_TRY(read_float(file, a, "attention.layer_norm_rms_epsilon", 0.0f, 1.0f, &h->norm_eps));
    if (a->global_every > 0) RS_TRY(read_uint(file, a, "attention.sliding_window", -1, 1, CONTEXT_MAX, &h->window));
    h->attention_scale = 1.0f / sqrtf((float)h->head_dim);
    /* Gemma 3 27B alone scales by the width per head, not by the head dimension (its authors' configuration). */
    if (a->global_every > 0 && h->layers == 62) h->attention_scale = 1.0f / sqrtf((float)h->dim / (float)h->heads);
    h->embed_scale = a->embed_scaled ? sqrtf((float)h->dim) : 1.0f;
    return RS_OK;
}

typedef enum rope_scaling { SCALE_NONE, SCALE_LINEAR, SCALE_YARN } rope_scaling;

typedef struct rope_params {
    rope_scaling scaling;
    float base, factor, attention_factor, beta_fast, beta_slow;
    uint32_t context_original;
} rope_params;

static rs_status read_rope(const gguf *file, const arch *a, const hparams *h, rope_params *p) {
    *p = (rope_params){
        .base = 10000.0f, .factor = 1.0f, .attention_factor = 1.0f, .beta_fast = 32.0f, .beta_slow = 1.0f};
    RS_TRY(read_float(file, a, "rope.freq_base", 1.0f, 1e12f, &p->base));
    RS_TRY(read_float(file, a, "rope.scaling.factor", 0.0f, 1e6f, &p->factor));
    RS_TRY(read_float(file, a, "rope.scaling.attn_factor", 0.0f, 1e6f, &p->attention_factor));
    RS_TRY(read_float(file, a, "rope.scaling.yarn_beta_fast", 0.0f, 1e6f, &p->beta_fast));
    RS_TRY(read_float(file, a, "rope.scaling.yarn_beta_slow", 0.0f, 1e6f, &p->beta_slow));
    RS_TRY(read_uint(file, a, "rope.scaling.original_context_length", h->context_trained, 1, CONTEXT_MAX,
                     &p->context_original));
    char buffer[96];
    /* A file that gives a factor but no type means linear scaling. */
    str type = str_of(p->factor != 1.0f && p->factor != 0.0f ? "linear" : "none");
    RS_TRY(gguf_get_str(file, key_of(a, "rope.scaling.type", buffer), &type));
    if (p->factor == 0.0f) p->factor = 1.0f;
    if (str_equal_text(type, "none")) {
        p->scaling = SCALE_NONE;
        p->factor = 1.0f;
    } else if (str_equal_text(type, "linear")) {
        p->scaling = SCALE_LINEAR;
    } else if (str_equal_text(type, "yarn")) {
        p->scaling = SCALE_YARN;
    } else {
        return status_fail(RS_UNSUPPORTED,
                           "RoPE scaling \"%.*s\" is not known here; known are: none, linear, yarn, and "
                           "llama3 by its rope_freqs tensor",
                           (int)(type.bytes < 32 ? type.bytes : 32), type.data);
    }
    return RS_OK;
}

/* The pair index whose wavelength fits `rotations` times into the original context (YaRN: arXiv:2309.00071). */
static double yarn_pair(const rope_params *p, uint32_t dims, double rotations) {
    return dims * log(p->context_original / (rotations * 2.0 * M_PI)) / (2.0 * log(p->base));
}

static double clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x;
}

static rs_status make_rope(const rope_params *p, uint32_t dims, const float *factors, rope_table *out) {
    uint32_t pairs = dims / 2;
    double *frequency = malloc(pairs * sizeof *frequency);
    if (frequency == NULL) return status_fail(RS_NO_MEMORY, "no memory for RoPE frequencies");
    double low = floor(clamp(yarn_pair(p, dims, p->beta_fast), 0.0, dims - 1.0));
    double high = ceil(clamp(yarn_pair(p, dims, p->beta_slow), 0.0, dims - 1.0));
    for (uint32_t i = 0; i < pairs; i++) {
        double plain = pow(p->base, -2.0 * i / dims);
        if (factors != NULL) plain /= factors[i];
        double scaled = plain / p->factor;
        double ramp = 1.0 - clamp((i - low) / fmax(0.001, high - low), 0.0, 1.0);
        frequency[i] = p->scaling == SCALE_YARN ? scaled * (1.0 - ramp) + plain * ramp : scaled;
    }
    double magnitude = p->attention_factor;
    if (p->scaling == SCALE_YARN && p->factor > 1.0f) magnitude *= 1.0 + 0.1 * log(p->factor);
    *out = (rope_table){frequency, (float)magnitude};
    return RS_OK;
}

/* Llama 3's per-pair divisors, already computed by whoever wrote the file; NULL when there are none. */
static rs_status rope_factors(const gguf *file, const hparams *h, const float **out) {
    const gguf_tensor *t = gguf_tensor_find(file, "rope_freqs.weight");
    *out = NULL;
    if (t == NULL) return RS_OK;
    if (t->format != FORMAT_F32 || t->shape[0] != h->rope_dims / 2 || t->bytes != h->rope_dims / 2 * sizeof(float) ||
        (uintptr_t)t->data % sizeof(float) != 0) {
        return status_fail(RS_BAD_FORMAT, "rope_freqs.weight is not %u aligned F32 values", h->rope_dims / 2);
    }
    *out = (const float *)(const void *)t->data;
    for (uint32_t i = 0; i < h->rope_dims / 2; i++) {
        if (!((*out)[i] > 0.0f)) return status_fail(RS_BAD_FORMAT, "rope_freqs.weight[%u] is not positive", i);
    }
    return RS_OK;
}

rs_status hparams_read(const gguf *file, hparams *out) {
    str name = {"", 0};
    RS_TRY(gguf_get_str(file, "general.architecture", &name));
    if (name.bytes == 0) return status_fail(RS_BAD_FORMAT, "the file names no general.architecture");
    hparams h = {.arch = arch_find(name)};
    if (h.arch == NULL) return unknown_arch(name);
    RS_TRY(read_shape(file, h.arch, &h));
    rope_params global;
    const float *factors;
    RS_TRY(read_rope(file, h.arch, &h, &global));
    RS_TRY(rope_factors(file, &h, &factors));
    RS_TRY(make_rope(&global, h.rope_dims, factors, &h.rope_global));
    if (h.arch->global_every > 0) {
        /* Layers with a window are never scaled. */
        rope_params local = {.base = h.arch->local_rope_base,
                             .factor = 1.0f,
                             .attention_factor = 1.0f,
                             .context_original = h.context_trained,
                             .beta_fast = 32.0f,
                             .beta_slow = 1.0f};
        rs_status status = read_float(file, h.arch, "rope.local.freq_base", 1.0f, 1e12f, &local.base);
        if (status == RS_OK) status = make_rope(&local, h.rope_dims, NULL, &h.rope_local);
        if (status != RS_OK) {
            hparams_free(&h);
            return status;
        }
    }
    *out = h;
    return RS_OK;
}

void hparams_free(hparams *h) {
    free(h->rope_global.frequency);
    free(h->rope_local.frequency);
    *h = (hparams){0};
}

bool hparams_slides(const hparams *h, uint32_t layer) {
    return h->window > 0 && (layer + 1) % h->arch->global_every != 0;
}
