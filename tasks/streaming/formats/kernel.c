/*
 * Whole lines of CSV -> rows of finite numbers, each correctly rounded; or a refusal, and the plain decoder decides.
 *
 * C99 without Python.h, called through ctypes (native.py), so that other threads run meanwhile. What is read here,
 * pyarrow reads too, and to the same bits. What is in doubt is refused: infinity and nan, numbers too large, empty
 * cells, quotes that end before their cell does, line ends within quotes, carriage returns that end no line, a byte
 * order mark, a wrong number of cells.
 *
 * Nothing behind the block is read: it ends with '\n', and no loop over a cell steps over one.
 */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__FAST_MATH__) || FLT_EVAL_METHOD != 0
#error "numbers would not be rounded correctly"
#endif

#define VERSION 1 /* of the functions' arguments and of what they read: native.py has the same */
#define REFUSED (-1)
#define MOST_DIGITS 19                       /* that 64 bits hold, whichever they are */
#define EXACT_INTEGER (UINT64_C(1) << 53)    /* up to it, each integer is a double */
#define EXACT_POWER 22                       /* up to it, each power of ten is a double */
#define LEAST_POWER (-342)                   /* below it, 19 digits are less than the least double; native.py has it */
#define MOST_POWER 308                       /* above it, each number is too large */
#define TOO_LARGE_FOR_FLOAT 0x1.ffffffp127   /* rounds to infinity as a float; what is less does not */
#define ENDLESS 100000000                    /* an exponent that the digits of no block make up for */

#define INLINE static inline __attribute__((always_inline))

typedef unsigned __int128 uint128_t;

static const double TENS[EXACT_POWER + 1] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                             1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/*
 * digits * 10^power, correctly rounded, for digits != 0; infinite where it is too large. The upper bits of a product
 * with a power of five of 128 bits (Eisel and Lemire: "Number parsing at a gigabyte per second"), which 64 bits of
 * digits never need more of (Mushtak and Lemire: "Fast number parsing without fallback").
 */
static double scale(uint64_t digits, int64_t power, const uint64_t *fives)
{
    if (power < LEAST_POWER)
        return 0.0;
    if (power > MOST_POWER)
        return INFINITY;
    int zeros = __builtin_clzll(digits);
    digits <<= zeros;
    const uint64_t *five = fives + 2 * (power - LEAST_POWER);
    uint128_t product = (uint128_t)digits * five[0];
    if (((uint64_t)(product >> 64) & 0x1ff) == 0x1ff) /* a carry out of what was left out would change the result */
        product += (uint128_t)digits * five[1] >> 64;
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
    int upper = (int)(high >> 63), shift = upper + 9;
    uint64_t bits = high >> shift;                                      /* the significand and one bit more */
    int64_t exponent = (217706 * power >> 16) + 1086 + upper - zeros;   /* biased; 217706 / 2^16 is log2(10) */
    if (exponent <= -63)
        return 0.0;
    if (exponent <= 0) /* subnormal */
        bits >>= 1 - exponent;
    else if (low <= 1 && power >= -4 && power <= 23 && (bits & 3) == 1 && bits << shift == high)
        bits -= 1; /* halfway between two doubles: the even one */
    bits = (bits + (bits & 1)) >> 1;
    if (exponent > 0)
        bits += (uint64_t)(exponent - 1) << 52; /* the leading bit, and a carry, add one to the exponent */
    if (bits >= UINT64_C(0x7ff) << 52)
        return INFINITY;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* digits * 10^power, correctly rounded: one operation on exact doubles where that will do (Clinger). */
INLINE double combine(uint64_t digits, int64_t power, const uint64_t *fives)
{
    if (digits <= EXACT_INTEGER && power >= -EXACT_POWER && power <= EXACT_POWER)
        return power < 0 ? (double)(int64_t)digits / TENS[-power] : (double)(int64_t)digits * TENS[power];
    return digits ? scale(digits, power, fives) : 0.0;
}

INLINE int is_digit(uint8_t byte)
{
    return byte - (unsigned)'0' < 10;
}

INLINE int is_blank(uint8_t byte)
{
    return byte == ' ' || byte == '\t';
}

INLINE int is_exponent(uint8_t byte)
{
    return (byte | 0x20) == 'e';
}

/* The exponent whose 'e' stands at *at, which moves behind it; whether there is one. */
INLINE int read_exponent(const uint8_t **at, int64_t *exponent)
{
    const uint8_t *p = *at + 1;
    int negative = *p == '-';
    p += negative || *p == '+';
    const uint8_t *first = p;
    int64_t found = 0;
    for (; is_digit(*p); p++)
        if (found < ENDLESS)
            found = found * 10 + (*p - '0');
    *exponent = negative ? -found : found;
    *at = p;
    return p > first;
}

/* A number of any length, without its sign. NAN: it is none, or the digits behind the 19th leave it in doubt. */
static double read_long(const uint8_t **at, const uint64_t *fives)
{
    const uint8_t *p = *at;
    uint64_t digits = 0;
    int64_t kept = 0, power = 0, exponent = 0;
    int any = 0, more = 0, behind = 0;
    for (; is_digit(*p) || (*p == '.' && !behind); p++) {
        if (*p == '.') {
            behind = 1;
            continue;
        }
        any = 1;
        power -= behind;
        if (kept < MOST_DIGITS) {
            digits = digits * 10 + (*p - '0');
            kept += digits != 0;
        } else {
            power++;
            more |= *p != '0';
        }
    }
    if (!any || (is_exponent(*p) && !read_exponent(&p, &exponent)))
        return NAN;
    *at = p;
    double value = combine(digits, power + exponent, fives);
    return more && combine(digits + 1, power + exponent, fives) != value ? NAN : value;
}

/* A number with blanks or quotes about it, a plus before it, or many digits. NAN: refused. */
static __attribute__((noinline)) double read_unusual(const uint8_t **at, const uint64_t *fives)
{
    const uint8_t *p = *at;
    int quoted = *p == '"';
    p += quoted;
    while (is_blank(*p))
        p++;
    int negative = *p == '-';
    p += negative || *p == '+';
    double value = read_long(&p, fives);
    while (is_blank(*p))
        p++;
    if (quoted && *p++ != '"')
        return NAN;
    *at = p;
    return negative ? -value : value;
}

/*
 * Adds the digits behind a point to *digits, which wraps where they are too many; where they end. Seven one by one, for
 * most cells have no more; then eight at a time, where the block has so many bytes.
 */
INLINE const uint8_t *read_fraction(const uint8_t *p, const uint8_t *stop, uint64_t *digits)
{
    for (int count = 0; count < 7; count++, p++) {
        if (!is_digit(*p))
            return p;
        *digits = *digits * 10 + (*p - '0');
    }
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    while (stop - p >= 8) {
        uint64_t eight;
        memcpy(&eight, p, sizeof eight);
        if (((eight + 0x4646464646464646) | (eight - 0x3030303030303030)) & 0x8080808080808080)
            break;                                                            /* they are not all digits */
        eight = (eight & 0x0f0f0f0f0f0f0f0f) * ((10 << 8) + 1) >> 8;          /* pairs */
        eight = (eight & 0x00ff00ff00ff00ff) * ((100 << 16) + 1) >> 16;       /* fours */
        eight = (eight & 0x0000ffff0000ffff) * ((10000ull << 32) + 1) >> 32;  /* all of them */
        *digits = *digits * 100000000 + eight;
        p += 8;
    }
#endif
    for (; is_digit(*p); p++)
        *digits = *digits * 10 + (*p - '0');
    return p;
}

/* The number of a cell, behind which *at moves; NAN, or infinite: refused. */
INLINE double read_number(const uint8_t **at, const uint8_t *stop, const uint64_t *fives)
{
    const uint8_t *p = *at;
    int negative = *p == '-';
    const uint8_t *first = p += negative;
    uint64_t digits = 0;
    for (; is_digit(*p); p++)
        digits = digits * 10 + (*p - '0');
    int64_t count = p - first, power = 0, exponent = 0;
    if (*p == '.') {
        const uint8_t *point = ++p;
        p = read_fraction(p, stop, &digits);
        power = point - p;
        count -= power;
    }
    if (count < 1 || count > MOST_DIGITS)
        return read_unusual(at, fives);
    double value;
    if (*p <= ',') /* behind a number without an exponent: power is not below -MOST_DIGITS */
        value = digits <= EXACT_INTEGER ? (double)(int64_t)digits / TENS[-power] : scale(digits, power, fives);
    else if (is_exponent(*p) && read_exponent(&p, &exponent))
        value = combine(digits, power + exponent, fives);
    else
        return NAN;
    *at = p;
    return negative ? -value : value;
}

/* Where a cell ends that nobody asked for, whatever it holds; NULL: refused. */
INLINE const uint8_t *skip_cell(const uint8_t *p)
{
    if (*p != '"') {
        while (*p != ',' && *p != '\n' && *p != '\r')
            p++;
        return p;
    }
    do {
        do
            p++;
        while (*p != '"' && *p != '\n' && *p != '\r');
        if (*p++ != '"')
            return NULL;
    } while (*p == '"'); /* two of them are one, of the text */
    return p;
}

INLINE int begins_with_mark(const uint8_t *p, int64_t size)
{
    return size >= 3 && p[0] == 0xef && p[1] == 0xbb && p[2] == 0xbf;
}

INLINE int64_t decode(const uint8_t *p, int64_t size, const int32_t *places, int64_t cells, void *rows, int64_t room,
                      int64_t width, const uint64_t *fives, int wide)
{
    const uint8_t *stop = p + size;
    if (size < 1 || stop[-1] != '\n' || begins_with_mark(p, size))
        return REFUSED;
    for (int64_t row = 0;; row++) {
        while (p < stop && (*p == '\n' || (*p == '\r' && p[1] == '\n'))) /* an empty line is no row */
            p += *p == '\r' ? 2 : 1;
        if (p == stop)
            return row;
        if (row == room)
            return REFUSED;
        for (int64_t cell = 0; cell < cells; cell++) {
            int64_t place = places[cell];
            if (place < 0) {
                p = skip_cell(p);
                if (p == NULL)
                    return REFUSED;
            } else {
                double value = read_number(&p, stop, fives);
                if (!(fabs(value) < (wide ? INFINITY : TOO_LARGE_FOR_FLOAT))) /* nor is NAN */
                    return REFUSED;
                if (wide)
                    ((double *)rows)[row * width + place] = value;
                else
                    ((float *)rows)[row * width + place] = (float)value;
            }
            int last = cell + 1 == cells;
            p += last && *p == '\r';
            if (*p++ != (last ? '\n' : ','))
                return REFUSED;
        }
    }
}

int32_t kernel_version(void)
{
    return VERSION;
}

/*
 * Decodes a block of whole lines into the first of [room, width] rows; their number. -1: refused, the rows undefined.
 *
 * places: for each cell of a line, which number of the row it is; -1: none
 * fives: 128 bits of 5^q for each q from LEAST_POWER to MOST_POWER, the upper 64 first
 */
int64_t decode_float64(const uint8_t *data, int64_t size, const int32_t *places, int64_t cells, double *rows,
                       int64_t room, int64_t width, const uint64_t *fives)
{
    return decode(data, size, places, cells, rows, room, width, fives, 1);
}

/* As decode_float64: each number is the double's nearest float. */
int64_t decode_float32(const uint8_t *data, int64_t size, const int32_t *places, int64_t cells, float *rows,
                       int64_t room, int64_t width, const uint64_t *fives)
{
    return decode(data, size, places, cells, rows, room, width, fives, 0);
}

/*
 * Lowers `least` to, and raises `most` to, each of `size` numbers, `tile` of them side by side, a multiple of a row's;
 * raises `odd` to how far each is from a whole number. `whole_from`: from here on every number is whole.
 */
#define FIND_RANGES(name, number, absolute, whole_from)                                                               \
    void name(const number *restrict rows, int64_t size, int64_t tile, number *restrict least, number *restrict most, \
              number *restrict odd)                                                                                   \
    {                                                                                                                 \
        for (; size > 0; size -= tile, rows += tile) {                                                                \
            int64_t stop = size < tile ? size : tile;                                                                 \
            for (int64_t at = 0; at < stop; at++) {                                                                   \
                number value = rows[at], part = absolute(value);                                                      \
                least[at] = value < least[at] ? value : least[at];                                                    \
                most[at] = value > most[at] ? value : most[at];                                                       \
                part = part < whole_from ? part : whole_from;                                                         \
                part = absolute(part + whole_from - whole_from - part);                                               \
                odd[at] = part > odd[at] ? part : odd[at];                                                            \
            }                                                                                                         \
        }                                                                                                             \
    }

FIND_RANGES(find_ranges_float64, double, fabs, 0x1p52)
FIND_RANGES(find_ranges_float32, float, fabsf, 0x1p23f)

#if defined(__x86_64__)

/* `value` carried so many bits on as the two constants say, by multiplication without carries, and the next bytes. */
__attribute__((target("pclmul,sse4.1"), always_inline)) static inline __m128i carry_on(__m128i value, __m128i constants,
                                                                                       __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(value, constants, 0x00), high = _mm_clmulepi64_si128(value, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

INLINE __attribute__((target("sse4.1"))) __m128i load(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

/* Whether this processor has what crc32_blocks is made of. */
int32_t crc32_is_fast(void)
{
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

/*
 * The CRC-32 that zlib computes, of `size` bytes more, a multiple of 16 and 64 at least; `crc` is that of those before.
 * Four lanes of 16 bytes are folded 64 bytes on, then into one, and what is left is reduced as by Barrett (Gopal and
 * others: "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction").
 */
__attribute__((target("pclmul,sse4.1"))) uint32_t crc32_blocks(const uint8_t *p, int64_t size, uint32_t crc)
{
    const __m128i on_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4); /* of each, the lower half stands behind */
    const __m128i on_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i on_8 = _mm_set_epi64x(0, 0x163cd6124), barrett = _mm_set_epi64x(0x1f7011641, 0x1db710641);
    const __m128i words = _mm_set_epi64x(0xffffffff, 0xffffffff);
    const uint8_t *stop = p + size;
    __m128i a = _mm_xor_si128(load(p), _mm_cvtsi32_si128((int)~crc)), b = load(p + 16);
    __m128i c = load(p + 32), d = load(p + 48);
    for (p += 64; stop - p >= 64; p += 64) {
        a = carry_on(a, on_64, load(p));
        b = carry_on(b, on_64, load(p + 16));
        c = carry_on(c, on_64, load(p + 32));
        d = carry_on(d, on_64, load(p + 48));
    }
    a = carry_on(a, on_16, b);
    a = carry_on(a, on_16, c);
    a = carry_on(a, on_16, d);
    for (; p < stop; p += 16)
        a = carry_on(a, on_16, load(p));
    a = _mm_xor_si128(_mm_srli_si128(a, 8), _mm_clmulepi64_si128(a, on_16, 0x10));
    a = _mm_xor_si128(_mm_srli_si128(a, 4), _mm_clmulepi64_si128(_mm_and_si128(a, words), on_8, 0x00));
    b = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(a, words), barrett, 0x10), words);
    a = _mm_xor_si128(a, _mm_clmulepi64_si128(b, barrett, 0x00));
    return ~(uint32_t)_mm_extract_epi32(a, 1);
}

#endif
