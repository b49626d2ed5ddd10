/* text.h: strings that are not NUL-terminated, and UTF-8. */
#ifndef RS_BASE_TEXT_H
#define RS_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A view of bytes owned by someone else. */
typedef struct str {
    const char *data;
    size_t bytes;
} str;

str str_of(const char *text); /* of a NUL-terminated string */
bool str_equal(str a, str b);
bool str_equal_text(str a, const char *text);

/* Decodes one character at text[0..bytes), bytes >= 1: returns its length 1-4 and the code point, or length 1 and -1
 * for a byte that starts no valid character (overlong forms, surrogates and > U+10FFFF are invalid: RFC 3629). */
size_t utf8_decode(const char *text, size_t bytes, int32_t *code_point);

/* Writes the character of a code point (<= U+10FFFF) to out[4] and returns its length. */
size_t utf8_encode(uint32_t code_point, char *out);

/* True when text[0..bytes), 1 to 3 bytes, is a proper prefix of some valid character. */
bool utf8_is_partial(const char *text, size_t bytes);

#endif
