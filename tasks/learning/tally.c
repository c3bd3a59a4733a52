/*
 * What slices of rows hold, column by column: mean, squared distances from it, least, most, and a histogram, while a
 * slice is in the processor's cache.
 *
 * C99 without Python.h, called through ctypes (tallying.py), so that other threads run meanwhile. Several rows lie side
 * by side in a tile, so that loops over it become vectors however few columns there are. No sum depends on how wide
 * those are: they are equal to the bit on every processor.
 */
#include <math.h>
#include <stdint.h>

#if defined(__FAST_MATH__)
#error "sums would depend on the processor"
#endif

/* What a tile's numbers are measured by, [tile] each, and room for what is found. */
struct tile {
    int64_t size;         /* numbers, a multiple of a row's */
    const double *scale;  /* powers of two that they are multiplied by */
    const double *origin; /* what means are measured from */
    const double *low;    /* the cell below the grid, a whole number; smaller numbers are in it */
    const double *high;   /* the cell above the grid; larger ones are in it */
    const int32_t *first; /* where in `cells` those of the column begin */
    double *least, *most, *total;
    int32_t *cell;
};

#define INLINE static inline __attribute__((always_inline))

/* Adds `size` numbers to the tile's sums, and their cells to `cells`. */
INLINE void add(const double *restrict rows, int64_t size, const struct tile *tile, int64_t *restrict cells)
{
    const double *restrict scale = tile->scale, *restrict origin = tile->origin;
    const double *restrict low = tile->low, *restrict high = tile->high;
    const int32_t *restrict first = tile->first;
    double *restrict least = tile->least, *restrict most = tile->most, *restrict total = tile->total;
    int32_t *restrict cell = tile->cell;
#pragma GCC ivdep
    for (int64_t at = 0; at < size; at++) {
        double value = rows[at] * scale[at];
        least[at] = value < least[at] ? value : least[at];
        most[at] = value > most[at] ? value : most[at];
        total[at] += value - origin[at];
        value = value > low[at] ? value : low[at];
        value = value < high[at] ? value : high[at];
        int32_t found = (int32_t)(value - low[at]); /* which may have been rounded up to the next whole number */
        found -= found + low[at] > value;
        cell[at] = found + first[at];
    }
    for (int64_t at = 0; at < size; at++)
        cells[cell[at]]++;
}

/* Adds the squared distances of `size` numbers from the means in `most` to `total`. */
INLINE void add_squares(const double *restrict rows, int64_t size, const struct tile *tile)
{
    const double *restrict scale = tile->scale, *restrict origin = tile->origin, *restrict mean = tile->most;
    double *restrict total = tile->total;
#pragma GCC ivdep
    for (int64_t at = 0; at < size; at++) {
        double apart = rows[at] * scale[at] - origin[at] - mean[at];
        total[at] += apart * apart;
    }
}

/* Takes the least and the most of all rows of the tile together in the first one. */
INLINE void fold_ends(const struct tile *tile, int64_t columns)
{
    for (int64_t start = columns; start < tile->size; start += columns)
        for (int64_t at = 0; at < columns; at++) {
            double least = tile->least[start + at], most = tile->most[start + at];
            tile->least[at] = least < tile->least[at] ? least : tile->least[at];
            tile->most[at] = most > tile->most[at] ? most : tile->most[at];
        }
}

/* Adds up the totals of all rows of the tile in the first one. */
INLINE void fold_totals(const struct tile *tile, int64_t columns)
{
    for (int64_t start = columns; start < tile->size; start += columns)
        for (int64_t at = 0; at < columns; at++)
            tile->total[at] += tile->total[start + at];
}

INLINE void tally(const double *rows, int64_t count, int64_t columns, int64_t size, const struct tile *tile,
                  double *sums, int64_t *cells)
{
    for (; count > 0; count -= size, rows += size * columns, sums += 5 * columns) {
        int64_t here = count < size ? count : size, numbers = here * columns;
        for (int64_t at = 0; at < tile->size; at++) {
            tile->least[at] = INFINITY;
            tile->most[at] = -INFINITY;
            tile->total[at] = 0;
        }
        for (int64_t at = 0; at < numbers; at += tile->size)
            add(rows + at, numbers - at < tile->size ? numbers - at : tile->size, tile, cells);
        fold_ends(tile, columns);
        fold_totals(tile, columns);
        for (int64_t at = 0; at < columns; at++) {
            sums[at] = (double)here;
            sums[columns + at] = tile->total[at] / (double)here;
            sums[3 * columns + at] = tile->least[at];
            sums[4 * columns + at] = tile->most[at];
        }
        for (int64_t start = 0; start < tile->size; start += columns)
            for (int64_t at = 0; at < columns; at++) {
                tile->most[start + at] = sums[columns + at];
                tile->total[start + at] = 0;
            }
        for (int64_t at = 0; at < numbers; at += tile->size)
            add_squares(rows + at, numbers - at < tile->size ? numbers - at : tile->size, tile);
        fold_totals(tile, columns);
        for (int64_t at = 0; at < columns; at++)
            sums[2 * columns + at] = tile->total[at];
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void tally_by_fours(const double *rows, int64_t count, int64_t columns,
                                                           int64_t size, const struct tile *tile, double *sums,
                                                           int64_t *cells)
{
    tally(rows, count, columns, size, tile, sums, cells);
}
#endif

/*
 * Writes the sums of slices of `size` rows, the last one perhaps of fewer, and counts all their numbers.
 *
 * rows: [count, columns], finite
 * measures: [4, tile], of the numbers of a tile: scale, origin, low and high
 * first: [tile]; both repeat what holds for a row
 * room: [3, tile] and [tile]
 * sums: [slices, 5, columns]: rows, mean from the origin, squared distances from the mean, least, most
 * cells: raised by one for each number, at `first` of its column and so many on as its cell is above `low`
 */
void tally_slices(const double *rows, int64_t count, int64_t columns, int64_t size, int64_t tile_size,
                  const double *measures, const int32_t *first, double *room, int32_t *room_of_cells, double *sums,
                  int64_t *cells)
{
    const double *scale = measures, *origin = scale + tile_size, *low = origin + tile_size, *high = low + tile_size;
    struct tile tile = {tile_size, scale, origin,          low, high, first, room, room + tile_size,
                        room + 2 * tile_size, room_of_cells};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        tally_by_fours(rows, count, columns, size, &tile, sums, cells);
        return;
    }
#endif
    tally(rows, count, columns, size, &tile, sums, cells);
}
