/* sample.c: logits to a token: penalties, top-k, top-p, min-p, temperature, in llama.cpp's order, and a seeded draw. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "base/status.h"
#include "ringspan.h"

typedef struct candidate {
    float logit;
    int32_t token;
} candidate;

struct rs_sampler {
    rs_sampling sampling;
    uint64_t state; /* of the generator */
    uint32_t vocab;
    candidate *heap; /* [vocab] max-heap by logit, then by lower token */
    candidate *kept; /* [vocab] in falling order */
    uint32_t *seen;  /* [vocab] times among the last tokens; all 0 between calls */
};

void rs_sampling_init(rs_sampling *s) {
    *s = (rs_sampling){
        .temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.0f, .penalty_last = 64};
}

static rs_status check(const rs_sampling *s) {
    if (!(s->temperature >= 0.0f && s->temperature < 1e6f)) {
        return status_fail(RS_BAD_ARGUMENT, "temperature %g is not 0 or more", (double)s->temperature);
    }
    if (!(s->top_p > 0.0f && s->top_p <= 1.0f)) {
        return status_fail(RS_BAD_ARGUMENT, "top_p %g is not above 0 and at most 1", (double)s->top_p);
    }
    if (!(s->min_p >= 0.0f && s->min_p <= 1.0f)) {
        return status_fail(RS_BAD_ARGUMENT, "min_p %g is not between 0 and 1", (double)s->min_p);
    }
    if (!(s->repeat_penalty > 0.0f && s->repeat_penalty < 1e6f)) {
        return status_fail(RS_BAD_ARGUMENT, "repeat_penalty %g is not above 0", (double)s->repeat_penalty);
    }
    if (!(fabsf(s->presence_penalty) < 1e6f && fabsf(s->frequency_penalty) < 1e6f)) {
        return status_fail(RS_BAD_ARGUMENT,
                           "the presence and frequency penalties are to be finite and below a million");
    }
    return RS_OK;
}

rs_status rs_sampler_open(const rs_model *model, const rs_sampling *sampling, rs_sampler **out) {
    if (model == NULL || sampling == NULL || out == NULL) {
        return status_fail(RS_BAD_ARGUMENT, "rs_sampler_open needs a model and parameters");
    }
    RS_TRY(check(sampling));
    rs_model_info info;
    rs_model_describe(model, &info);
    rs_sampler *s = calloc(1, sizeof *s);
    if (s == NULL) return status_fail(RS_NO_MEMORY, "no memory for a sampler");
    *s = (rs_sampler){.sampling = *sampling, .state = sampling->seed, .vocab = info.vocab};
    s->heap = calloc(info.vocab, sizeof *s->heap);
    s->kept = calloc(info.vocab, sizeof *s->kept);
    s->seen = calloc(info.vocab, sizeof *s->seen);
    if (s->heap == NULL || s->kept == NULL || s->seen == NULL) {
        rs_sampler_close(s);
        return status_fail(RS_NO_MEMORY, "no memory to sample from %u tokens", info.vocab);
    }
    *out = s;
    return RS_OK;
}

void rs_sampler_close(rs_sampler *s) {
    if (s == NULL) return;
    free(s->heap);
    free(s->kept);
    free(s->seen);
    free(s);
}

/* ---- A max-heap: the most probable tokens come out one by one, without sorting the vocabulary ---- */

static bool above(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

static void sift_down(candidate *heap, size_t n, size_t i) {
    candidate moving = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && above(heap[child + 1], heap[child])) child++;
        if (!above(heap[child], moving)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void build_heap(candidate *heap, size_t n) {
    for (size_t i = n / 2; i > 0; i--) sift_down(heap, n, i - 1);
}

static candidate pop(candidate *heap, size_t *n) {
    candidate top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0) sift_down(heap, *n, 0);
    return top;
}

/* ---- The chain ---- */

/* Repetition penalty: Keskar et al., arXiv:1909.05858; presence and frequency as in the OpenAI API. */
static void penalise(rs_sampler *s, const int32_t *tokens, size_t count) {
    const rs_sampling *p = &s->sampling;
    size_t last = count < p->penalty_last ? count : p->penalty_last;
    if (p->repeat_penalty == 1.0f && p->presence_penalty == 0.0f && p->frequency_penalty == 0.0f) return;
    if (last == 0) return;
    const int32_t *window = tokens + (count - last);
    for (size_t i = 0; i < last; i++) s->seen[window[i]]++;
    for (size_t i = 0; i < last; i++) {
        candidate *c = &s->heap[window[i]]; /* still in token order */
        uint32_t times = s->seen[window[i]];
        s->seen[window[i]] = 0;
        if (times == 0) continue;
        c->logit = c->logit > 0.0f ? c->logit / p->repeat_penalty : c->logit * p->repeat_penalty;
        c->logit -= p->presence_penalty + (float)times * p->frequency_penalty;
    }
}

/* Moves the candidates that top-k and top-p leave from the heap to `kept`, most probable first; all that top-k leaves
 * when no logit is finite any more, for then the sums are no numbers. */
static size_t take_top(rs_sampler *s, size_t n_heap) {
    const rs_sampling *p = &s->sampling;
    size_t most = p->top_k > 0 && p->top_k < n_heap ? p->top_k : n_heap, n = 0;
    double total = 0.0, sum = 0.0;
    float max = s->heap[0].logit;
    if (p->top_p >= 1.0f) {
        while (n < most) s->kept[n++] = pop(s->heap, &n_heap);
        return n;
    }
    if (most == n_heap) {
        for (size_t i = 0; i < n_heap; i++) total += exp((double)s->heap[i].logit - max);
        while (n < most && !(sum >= p->top_p * total)) {
            s->kept[n] = pop(s->heap, &n_heap);
            sum += exp((double)s->kept[n++].logit - max);
        }
        return n;
    }
    /* Top-p counts the probability among what top-k left. */
    for (size_t i = 0; i < most; i++) {
        s->kept[i] = pop(s->heap, &n_heap);
        total += exp((double)s->kept[i].logit - max);
    }
    while (n < most && !(sum >= p->top_p * total)) sum += exp((double)s->kept[n++].logit - max);
    return n;
}

static int32_t draw(rs_sampler *s, size_t n) {
    const rs_sampling *p = &s->sampling;
    float max = s->kept[0].logit;
    while (n > 1 && exp((double)s->kept[n - 1].logit - max) < p->min_p) n--;
    double total = 0.0;
    for (size_t i = 0; i < n; i++) total += exp(((double)s->kept[i].logit - max) / p->temperature);
    double at = random_unit(&s->state) * total;
    for (size_t i = 0; i + 1 < n; i++) {
        at -= exp(((double)s->kept[i].logit - max) / p->temperature);
        if (at < 0.0) return s->kept[i].token;
    }
    return s->kept[n - 1].token;
}

/* ln sum exp(logits), or NAN when a logit is none. */
static double log_total(const float *logits, size_t n, float max) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)expf(logits[i] - max);
    return max + log(sum);
}

rs_status rs_sampler_pick(rs_sampler *s, const float *logits, const int32_t *tokens, size_t count, rs_logprob *picked,
                          rs_logprob *top, size_t n_top) {
    if (s == NULL || logits == NULL || picked == NULL || (tokens == NULL && count > 0)) {
        return status_fail(RS_BAD_ARGUMENT, "rs_sampler_pick needs logits and a place to write");
    }
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= s->vocab) {
            return status_fail(RS_BAD_ARGUMENT, "token %d is not in the vocabulary of %u", tokens[i], s->vocab);
        }
    }
    float max = -INFINITY;
    for (uint32_t i = 0; i < s->vocab; i++) {
        s->heap[i] = (candidate){logits[i], (int32_t)i};
        if (logits[i] > max) max = logits[i];
    }
    double norm = log_total(logits, s->vocab, max);
    if (!isfinite(norm))
        return status_fail(RS_DEVICE, "the logits are not finite numbers; the model file may be damaged");
    size_t n = s->vocab;
    if (top != NULL && n_top > 0) {
        build_heap(s->heap, n);
        size_t wanted = n_top < s->vocab ? n_top : s->vocab;
        for (size_t i = 0; i < n_top; i++) top[i] = (rs_logprob){-1, -INFINITY};
        for (size_t i = 0; i < wanted; i++) {
            candidate c = pop(s->heap, &n);
            top[i] = (rs_logprob){c.token, (float)(c.logit - norm)};
        }
        n = s->vocab;
        for (uint32_t i = 0; i < s->vocab; i++) s->heap[i] = (candidate){logits[i], (int32_t)i};
    }
    penalise(s, tokens, count);
    build_heap(s->heap, n);
    int32_t token = s->sampling.temperature == 0.0f ? s->heap[0].token : draw(s, take_top(s, n));
    *picked = (rs_logprob){token, (float)(logits[token] - norm)};
    return RS_OK;
}
