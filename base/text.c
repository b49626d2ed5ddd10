/* text.c: byte views and UTF-8 (RFC 3629). */
#include "base/text.h"

#include <string.h>

str str_of(const char *text) {
    return (str){text, strlen(text)};
}

bool str_equal(str a, str b) {
    return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.data, b.data, a.bytes) == 0);
}

bool str_equal_text(str a, const char *text) {
    return str_equal(a, str_of(text));
}

/* Length of the character that `lead` starts, and the range its second byte must lie in; 0 for no lead byte. */
static size_t lead_length(uint8_t lead, uint8_t *low, uint8_t *high) {
    *low = 0x80;
    *high = 0xBF;
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) {
        if (lead == 0xE0) *low = 0xA0;  /* no overlong forms */
        if (lead == 0xED) *high = 0x9F; /* no surrogates */
        return 3;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (lead == 0xF0) *low = 0x90;
        if (lead == 0xF4) *high = 0x8F; /* no more than U+10FFFF */
        return 4;
    }
    return 0;
}

/* How many of text's first bytes agree with the character that text[0] starts; *length receives its full length. */
static size_t agreeing(const char *text, size_t bytes, size_t *length) {
    const uint8_t *s = (const uint8_t *)text;
    uint8_t low, high;
    *length = lead_length(s[0], &low, &high);
    if (*length == 0) return 0;
    size_t i = 1;
    for (; i < *length && i < bytes; i++) {
        if (s[i] < low || s[i] > high) break;
        low = 0x80;
        high = 0xBF;
    }
    return i;
}

size_t utf8_decode(const char *text, size_t bytes, int32_t *code_point) {
    static const uint8_t lead_mask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    size_t length;
    size_t n = agreeing(text, bytes, &length);
    if (n == 0 || n != length) {
        *code_point = -1;
        return 1;
    }
    int32_t value = (uint8_t)text[0] & lead_mask[length];
    for (size_t i = 1; i < length; i++) value = value << 6 | ((uint8_t)text[i] & 0x3F);
    *code_point = value;
    return length;
}

size_t utf8_encode(uint32_t code_point, char *out) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    size_t length = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    out[0] = (char)(lead[length] | code_point);
    return length;
}

bool utf8_is_partial(const char *text, size_t bytes) {
    size_t length;
    return bytes > 0 && agreeing(text, bytes, &length) == bytes && bytes < length;
}
