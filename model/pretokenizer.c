/* pretokenizer.c: the table of families and their regular expressions, run by PCRE2.
 *
 * The patterns are facts of the trained models. They are written here with Unicode's White_Space spelt out for \s, as
 * PCRE2's \s also takes U+180E, which the reference implementation (Oniguruma) does not. Character classes are those
 * of the Unicode version of the PCRE2 at hand (14 in 10.42): letters assigned later may be cut differently. */
#include "model/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <assert.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

#define SPACE "\\t-\\r\\x{85}\\p{Z}" /* within a class */
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define LINE_ENDS "[" SPACE "]*[\\r\\n]+|" SPACES
#define SIGNS " ?[^" SPACE "\\p{L}\\p{N}]+"
#define LEAD "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" SIGNS "|" SPACES

/* An unnamed pre-tokenizer is taken for GPT-2's, which "gpt2" vocabularies were made with first. */
static const pretokenizer_family families[] = {
    {" llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 midm-2.0 ",
     {CONTRACTION "|" LEAD "\\p{L}+|\\p{N}{1,3}|" SIGNS "[\\r\\n]*|" LINE_ENDS},
     .whole_words = true,
     .add_bos = true},
    {" dbrx smaug-bpe glm4 chatglm-bpe ", {CONTRACTION "|" LEAD "\\p{L}+|\\p{N}{1,3}|" SIGNS "[\\r\\n]*|" LINE_ENDS}},
    {" qwen2 qwen3 deepseek-r1-qwen megrez stablelm2 hunyuan solar-open grok-2 ",
     {CONTRACTION "|" LEAD "\\p{L}+|\\p{N}|" SIGNS "[\\r\\n]*|" LINE_ENDS}},
    {" qwen35 ", {CONTRACTION "|" LEAD "[\\p{L}\\p{M}]+|\\p{N}| ?[^" SPACE "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINE_ENDS}},
    {" gpt-2 default phi-2 mpt olmo jais exaone4 trillion granite-docling gigachat mellum ", {GPT2}},
    {" smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 ", {"\\p{N}", GPT2}},
    {" tekken ",
     {LEAD UPPER "*" LOWER "+|" LEAD UPPER "+" LOWER "*|\\p{N}|" SIGNS "[\\r\\n/]*|" LINE_ENDS},
     .whole_words = true,
     .add_bos = true},
    {" gpt-4o llama4 kanana2 ",
     {LEAD UPPER "*" LOWER "+" CONTRACTION "?|" LEAD UPPER "+" LOWER "*" CONTRACTION "?|\\p{N}{1,3}|" SIGNS
                 "[\\r\\n/]*|" LINE_ENDS}},
    {" deepseek-v3 hunyuan-dense joyai-llm ",
     {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
      " ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINE_ENDS}},
};

struct pretokenizer {
    const pretokenizer_family *family;
    pcre2_code *steps[PRETOKENIZER_STEPS_MAX]; /* NULL after the last */
};

struct pretokenizer_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
};

static const pretokenizer_family *find_family(str name) {
    if (memchr(name.data, ' ', name.bytes) != NULL) return NULL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        for (const char *at = families[i].names; *at != 0; at++) {
            if (strncmp(at + 1, name.data, name.bytes) == 0 && at[0] == ' ' && at[name.bytes + 1] == ' ')
                return &families[i];
        }
    }
    return NULL;
}

static rs_status fail_unknown(str name) {
    char known[400];
    size_t n = 0;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        size_t bytes = strlen(families[i].names) - 1; /* the last space is the next one's first */
        if (n + bytes >= sizeof known) break;
        memcpy(known + n, families[i].names, bytes);
        n += bytes;
    }
    return status_fail(RS_UNSUPPORTED, "tokenizer.ggml.pre '%.*s' is not known; known are%.*s",
                       (int)(name.bytes < 40 ? name.bytes : 40), name.data, (int)n, known);
}

rs_status pretokenizer_open(str name, pretokenizer **out) {
    const pretokenizer_family *family = find_family(name);
    if (family == NULL) return fail_unknown(name);
    pretokenizer *p = calloc(1, sizeof *p);
    if (p == NULL) return status_fail(RS_NO_MEMORY, "no memory for a pre-tokenizer");
    p->family = family;
    for (size_t i = 0; i < PRETOKENIZER_STEPS_MAX && family->patterns[i] != NULL; i++) {
        int error;
        PCRE2_SIZE offset;
        pcre2_code *code = pcre2_compile((PCRE2_SPTR)family->patterns[i], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                         &error, &offset, NULL);
        if (code == NULL) {
            pretokenizer_close(p);
            return status_fail(RS_NO_MEMORY, "PCRE2 cannot compile a pre-tokenizer: error %d at %zu", error,
                               (size_t)offset);
        }
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where it is not allowed, matching is only slower */
        p->steps[i] = code;
    }
    *out = p;
    return RS_OK;
}

void pretokenizer_close(pretokenizer *p) {
    if (p == NULL) return;
    for (size_t i = 0; i < PRETOKENIZER_STEPS_MAX; i++) pcre2_code_free(p->steps[i]);
    free(p);
}

const pretokenizer_family *pretokenizer_describe(const pretokenizer *p) {
    return p->family;
}

size_t pretokenizer_heap_bytes(const pretokenizer *p) {
    size_t total = sizeof *p;
    for (size_t i = 0; i < PRETOKENIZER_STEPS_MAX && p->steps[i] != NULL; i++) {
        size_t code = 0, jit = 0;
        pcre2_pattern_info(p->steps[i], PCRE2_INFO_SIZE, &code);
        pcre2_pattern_info(p->steps[i], PCRE2_INFO_JITSIZE, &jit);
        total += code + jit;
    }
    return total;
}

rs_status pretokenizer_scratch_open(const pretokenizer *p, pretokenizer_scratch **out) {
    (void)p;
    pretokenizer_scratch *scratch = calloc(1, sizeof *scratch);
    if (scratch == NULL) return status_fail(RS_NO_MEMORY, "no memory to split text");
    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    if (scratch->match == NULL || scratch->context == NULL) {
        pretokenizer_scratch_close(scratch);
        return status_fail(RS_NO_MEMORY, "no memory to split text");
    }
    *out = scratch;
    return RS_OK;
}

void pretokenizer_scratch_close(pretokenizer_scratch *scratch) {
    if (scratch == NULL) return;
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    free(scratch);
}

typedef struct split {
    const pretokenizer *pretokenizer;
    pretokenizer_scratch *scratch;
    pretokenizer_word word;
    void *user;
} split;

/* What a step matches and what lies between are pieces alike; each is all that the next step sees. */
static rs_status split_piece(const split *s, size_t step, const char *text, size_t bytes) {
    const pcre2_code *code = step < PRETOKENIZER_STEPS_MAX ? s->pretokenizer->steps[step] : NULL;
    if (code == NULL) return s->word(s->user, text, bytes);
    size_t at = 0;
    while (at < bytes) {
        int found =
            pcre2_match(code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, s->scratch->match, s->scratch->context);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
            return status_fail(RS_LIMIT, "PCRE2 gave up splitting %zu bytes of text: error %d", bytes, found);
        }
        const PCRE2_SIZE *place = pcre2_get_ovector_pointer(s->scratch->match);
        size_t begin = found < 0 ? bytes : place[0], end = found < 0 ? bytes : place[1];
        assert(begin >= at && (end > begin || begin == bytes)); /* no pattern matches nothing */
        if (begin > at) RS_TRY(split_piece(s, step + 1, text + at, begin - at));
        if (end > begin) RS_TRY(split_piece(s, step + 1, text + begin, end - begin));
        at = end;
    }
    return RS_OK;
}

rs_status pretokenizer_split(const pretokenizer *p, pretokenizer_scratch *scratch, const char *text, size_t bytes,
                             pretokenizer_word word, void *user) {
    split s = {p, scratch, word, user};
    /* Backtracking is at most a few steps for each byte, so the limit only stops a defect. */
    uint64_t limit = 1000000 + 16 * (uint64_t)bytes;
    pcre2_set_match_limit(scratch->context, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    return split_piece(&s, 0, text, bytes);
}
