// Windows that move over images, NHWC: what max_pool, avg_pool, im2col and pad have in common.
#pragma once

constexpr int TOGETHER = 9;  // loads that a thread has under way at once

constexpr __device__ int batch(int lines, int each) { return lines * each <= TOGETHER ? lines : 1; }

template <class I> struct unsigned_of { using type = unsigned long long; };
template <> struct unsigned_of<int> { using type = unsigned; };

// Where flat element t of an array (N, H, W, C) lies: one chain of divisions, of unsigned numbers,
// which take half the instructions of signed ones.
template <class I>
struct Place {
    I n;
    int h, w, c;
};

template <class I>
__device__ inline Place<I> place(I t, int H, int W, int C)
{
    typename unsigned_of<I>::type line = t, row, image;
    line /= C;
    row = line / W;
    image = row / H;
    return {(I)image, (int)(row - image * H), (int)(line - row * W), (int)((I)t - (I)line * C)};
}

// use(load(h, w), h, w, r*S + s) for each pixel (r, s) of a window that lies in x, in scan order; the
// window's first pixel is (top, left). All loads of a batch come before its first use: outside of x
// the nearest pixel is loaded, and not used.
template <int R, int S, int DH, int DW, class Load, class Use>
__device__ inline void each_pixel(int top, int left, int H, int W, Load load, Use use)
{
    constexpr int ROWS = batch(R, S), COLUMNS = batch(S, 1);
    for (int r0 = 0; r0 < R; r0 += ROWS) {
        for (int s0 = 0; s0 < S; s0 += COLUMNS) {
            decltype(load(0, 0)) v[ROWS][COLUMNS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const int h = min(max(top + (r0 + i) * DH, 0), H - 1);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j)
                    v[i][j] = load(h, min(max(left + (s0 + j) * DW, 0), W - 1));
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const int h = top + (r0 + i) * DH;
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    const int w = left + (s0 + j) * DW;
                    if (0 <= h && h < H && 0 <= w && w < W)
                        use(v[i][j], h, w, (r0 + i) * S + s0 + j);
                }
            }
        }
    }
}

// What so many numbers of type A are added in: the error of a long sum in float grows with it.
template <bool LONG, class A> struct SumOf { using Type = A; };
template <class A> struct SumOf<true, A> { using Type = double; };
enum { MANY = 64 };

// Number of positions that a window of that extent has over one pixel, along an axis.
constexpr __device__ int overlaps(int extent, int stride) { return (extent - 1) / stride + 1; }

// Backward of a pool, for tile (tp, tq): the SH x SW pixels from (tp*SH - PT, tq*SW - PL) on, which lie
// in the same windows. For each pixel in x: use(sum, load(p, q), r*S + s) for each window that has it
// as its pixel (r, s), p rising, then q; then store(h, w, sum). Windows are loaded once, and together
// if they are not too many: where there is none the nearest is, and not used.
template <int V, class A, int R, int S, int SH, int SW, int DH, int DW, int PT, int PL,
          class Load, class Use, class Store>
__device__ inline void each_tile_pixel(
    int tp, int tq, int H, int W, int P, int Q, Load load, Use use, Store store)
{
    constexpr int EH = DH * (R - 1) + 1, EW = DW * (S - 1) + 1;          // extent of a window, pixels
    constexpr int DOWN = overlaps(EH, SH), ACROSS = overlaps(EW, SW);
    constexpr bool ALL = DOWN * ACROSS <= TOGETHER;
    constexpr int WINDOWS = ALL ? TOGETHER : 1, PIXELS = ALL && SH * SW <= TOGETHER ? TOGETHER : 1;
    decltype(load(0, 0)) v[ALL ? DOWN : 1][ALL ? ACROSS : 1];
    if constexpr (ALL) {
#pragma unroll
        for (int a = DOWN - 1; a >= 0; --a) {
#pragma unroll
            for (int b = ACROSS - 1; b >= 0; --b)
                v[a][b] = load(min(max(tp - a, 0), P - 1), min(max(tq - b, 0), Q - 1));
        }
    }
#pragma unroll PIXELS
    for (int ij = 0; ij < SH * SW; ++ij) {
        const int i = ij / SW, j = ij % SW, h = tp * SH - PT + i, w = tq * SW - PL + j;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        typename SumOf<(DOWN * ACROSS > MANY), A>::Type sum[V] = {};
#pragma unroll WINDOWS
        for (int a = DOWN - 1; a >= 0; --a) {
            const int p = tp - a, dh = i + a * SH;
            if (dh >= EH || dh % DH || p < 0 || p >= P) continue;
#pragma unroll WINDOWS
            for (int b = ACROSS - 1; b >= 0; --b) {
                const int q = tq - b, dw = j + b * SW, rs = dh / DH * S + dw / DW;
                if (dw >= EW || dw % DW || q < 0 || q >= Q) continue;
                if constexpr (ALL)
                    use(sum, v[a][b], rs);
                else
                    use(sum, load(p, q), rs);
            }
        }
        store(h, w, sum);
    }
}

// use(load(p, q), p, q, r*S + s) for each window that has (h, w) as its pixel (r, s), p rising, then
// q. In batches likewise: where there is no such window, the nearest one is loaded. PT and PL may be
// negative: then (h, w) may lie above or left of every window.
template <int R, int S, int SH, int SW, int DH, int DW, int PT, int PL, class Load, class Use>
__device__ inline void each_window(int h, int w, int P, int Q, Load load, Use use)
{
    constexpr int EH = DH * (R - 1) + 1, EW = DW * (S - 1) + 1;          // extent of a window, pixels
    constexpr int DOWN = overlaps(EH, SH), ACROSS = overlaps(EW, SW);
    constexpr int ROWS = batch(DOWN, ACROSS), COLUMNS = batch(ACROSS, 1);
    const int p0 = (h + PT) / SH - DOWN + 1, q0 = (w + PL) / SW - ACROSS + 1;
    const int a0 = ROWS > 1 ? 0 : max(0, -p0), a1 = ROWS > 1 ? DOWN : min(DOWN, P - p0);
    const int b0 = COLUMNS > 1 ? 0 : max(0, -q0), b1 = COLUMNS > 1 ? ACROSS : min(ACROSS, Q - q0);
    for (int a = a0; a < a1; a += ROWS) {
        for (int b = b0; b < b1; b += COLUMNS) {
            decltype(load(0, 0)) v[ROWS][COLUMNS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const int p = min(max(p0 + a + i, 0), P - 1);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j)
                    v[i][j] = load(p, min(max(q0 + b + j, 0), Q - 1));
            }
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const int p = p0 + a + i, dh = h + PT - p * SH;
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    const int q = q0 + b + j, dw = w + PL - q * SW;
                    if (0 <= p && p < P && 0 <= dh && dh < EH && dh % DH == 0 &&
                        0 <= q && q < Q && 0 <= dw && dw < EW && dw % DW == 0)
                        use(v[i][j], p, q, dh / DH * S + dw / DW);
                }
            }
        }
    }
}
