/* special.h: finds control and user-defined tokens in text: leftmost first, the longest at each place. */
#ifndef RS_MODEL_SPECIAL_H
#define RS_MODEL_SPECIAL_H

#include "model/vocabulary.h"

typedef struct special_set {
    const vocabulary *vocabulary;
    int32_t *sorted; /* [count] tokens in the order of their bytes */
    size_t count;
    uint32_t first[257];    /* sorted[first[b]..first[b + 1]) begin with byte b */
    uint8_t pairs[1 << 13]; /* a bit for each two bytes that some token begins with; ordinary text stops here */
} special_set;

/* Of the tokens of the kinds in `kinds` (a bit 1 << token_kind each). On failure *s is empty. RS_NO_MEMORY. */
rs_status special_open(special_set *s, const vocabulary *v, unsigned kinds);
void special_close(special_set *s);

/* The place of the first special token in text[begin..end), and that token; `end` when there is none. */
size_t special_find(const special_set *s, const char *text, size_t begin, size_t end, int32_t *token);

#endif
