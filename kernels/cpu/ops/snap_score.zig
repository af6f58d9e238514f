//! SnapKV's scores (Li et al. 2404.14469): how much attention the last queries pay to each token of
//! the context.
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");
const kernel_mod = @import("../kernel.zig");
const layout = @import("../layout.zig");
const source_mod = @import("attention_source.zig");
const tile_mod = @import("attention_tile.zig");

const F = simd.F;
const Desc = types.SnapScoreDesc;
const max_rows = tile_mod.max_rows;

pub const snap_score: kernel_mod.Kernel = kernel_mod.kernel(Desc, &.{Heads});

/// Tokens that all query rows pass over before the next ones, so that their K stays in the
/// second-level cache.
const block_tokens = 512;

/// One item a (sequence, KV head): first every query row's maximum and sum of weights, then the
/// weights summed by token.
const Heads = struct {
    pub fn plan(desc: *Desc, _: u32) u32 {
        return desc.lens.shape[0] * desc.cache.kv_heads;
    }

    pub fn run(desc: *const Desc, item: u32, scratch: *const kernel_mod.Scratch) void {
        switch (desc.cache.head_dim) {
            inline 64, 96, 128, 256 => |d| scoreHead(d, desc, item, scratch),
            else => unreachable,
        }
    }
};

/// Running maximum (raw scores) and sum of weights relative to it; after the first pass `sum` is
/// its inverse.
const Row = struct { max: f32, sum: f32 };

fn scoreHead(
    comptime d: usize,
    desc: *const Desc,
    item: u32,
    scratch: *const kernel_mod.Scratch,
) void {
    const s = item / desc.cache.kv_heads;
    const length: u32 = @intCast(@max(kernel_mod.pointer(i32, desc.lens)[s], 0));
    if (length <= desc.window) return;
    const tables = kernel_mod.pointer(i32, desc.block_table);
    const ring_elements = @as(usize, desc.queries.shape[1]) * desc.queries.shape[2] * d;
    const group = desc.queries.shape[2] / desc.cache.kv_heads;
    const rows: [*]Row = @ptrCast(@alignCast(scratch.data));
    var head: Head(d) = .{
        .desc = desc,
        .pages = .{
            .cache = desc.cache,
            .table = tables + @as(usize, s) * desc.block_table.shape[1],
            .layer = desc.layer,
            .head = item % desc.cache.kv_heads,
        },
        .queries = kernel_mod.pointer(u16, desc.queries) + s * ring_elements,
        .scale = .init(desc.scale),
        .context = length - desc.window,
        .group = group,
        .rows = rows[0 .. desc.window * group],
    };
    head.normalise();
    head.accumulate(kernel_mod.pointer(f32, desc.scores) + @as(usize, item) * desc.scores.shape[2]);
}

fn Head(comptime d: usize) type {
    return struct {
        const Self = @This();
        const Queries = [max_rows * d / 2]tile_mod.Operand;

        desc: *const Desc,
        pages: source_mod.Pages,
        /// (ring, h, d) of this sequence
        queries: [*]const u16,
        scale: tile_mod.Scale,
        /// tokens before the window
        context: u32,
        group: u32,
        /// row r is query r / group of the window, head r % group of the group
        rows: []Row,

        /// First pass: each row's maximum and inverse sum over all tokens that it sees.
        fn normalise(self: *Self) void {
            @memset(self.rows, .{ .max = tile_mod.lowest, .sum = 0 });
            const length = self.context + self.desc.window;
            var begin: u32 = 0;
            while (begin < length) : (begin += block_tokens) {
                const end = @min(begin + block_tokens, length);
                var first: usize = 0;
                while (first < self.rows.len) : (first += max_rows) switch (self.rows.len - first) {
                    inline 1...max_rows - 1 => |count| self.normaliseRows(count, first, begin, end),
                    else => self.normaliseRows(max_rows, first, begin, end),
                };
            }
            for (self.rows) |*row| row.sum = 1 / row.sum;
        }

        fn normaliseRows(
            self: *Self,
            comptime count: usize,
            first: usize,
            begin: u32,
            end: u32,
        ) void {
            @setEvalBranchQuota(tile_mod.unrolled_quota);
            var q: Queries = undefined;
            self.loadQueries(first, count, &q);
            var sums: [count]F = @splat(simd.splat(0));
            var token = begin;
            while (token < end) : (token += layout.tile) {
                var scores = self.scoreTile(count, &q, token);
                inline for (0..count) |r| {
                    const row = &self.rows[first + r];
                    const visible = self.position(first + r) + 1;
                    if (visible < token + layout.tile) {
                        tile_mod.maskScores(&scores[r], token, 0, visible);
                    }
                    const before = row.max;
                    row.max = tile_mod.raisedMaximum(&scores[r], before, &self.scale);
                    if (row.max > before) {
                        const difference = (before - row.max) * self.scale.log2;
                        const factor = tile_mod.exp2(simd.splat(difference));
                        sums[r] *= factor;
                        row.sum *= factor[0];
                    }
                    inline for (scores[r]) |x| sums[r] += tile_mod.weight(x, row.max, &self.scale);
                }
            }
            for (self.rows[first..][0..count], sums) |*row, sum| row.sum += tile_mod.sumLanes(sum);
        }

        /// Second pass: out[token] = sum of all rows' probabilities, rows ascending.
        fn accumulate(self: *Self, out: [*]f32) void {
            var begin: u32 = 0;
            while (begin < self.context) : (begin += block_tokens) {
                const end = @min(begin + block_tokens, self.context);
                var totals: [block_tokens]f32 align(64) = @splat(0);
                var first: usize = 0;
                while (first < self.rows.len) : (first += max_rows) switch (self.rows.len - first) {
                    inline 1...max_rows - 1 => |count| {
                        self.accumulateRows(count, first, begin, end, &totals);
                    },
                    else => self.accumulateRows(max_rows, first, begin, end, &totals),
                };
                @memcpy(out[begin..end], totals[0 .. end - begin]);
            }
        }

        fn accumulateRows(
            self: *Self,
            comptime count: usize,
            first: usize,
            begin: u32,
            end: u32,
            totals: *[block_tokens]f32,
        ) void {
            @setEvalBranchQuota(tile_mod.unrolled_quota);
            var q: Queries = undefined;
            self.loadQueries(first, count, &q);
            var token = begin;
            while (token < end) : (token += layout.tile) {
                const scores = self.scoreTile(count, &q, token);
                inline for (0..tile_mod.score_vectors) |j| {
                    const p = totals[token - begin + j * simd.W ..].ptr;
                    var total = simd.loadF(p);
                    inline for (0..count) |r| {
                        const row = self.rows[first + r];
                        const x = tile_mod.weight(scores[r][j], row.max, &self.scale);
                        total = simd.mulAdd(x, simd.splat(row.sum), total);
                    }
                    simd.storeF(p, total);
                }
            }
        }

        fn position(self: *const Self, r: usize) u32 {
            return self.context + @as(u32, @intCast(r)) / self.group;
        }

        fn loadQueries(self: *const Self, first: usize, comptime count: usize, out: *Queries) void {
            const heads = self.desc.queries.shape[2];
            for (0..count) |i| {
                const r = first + i;
                const slot: usize = self.position(r) % self.desc.queries.shape[1];
                const head = self.pages.head * self.group + r % self.group;
                const row = self.queries + (slot * heads + head) * d;
                for (0..d / 2) |pair| {
                    out[pair * count + i] = tile_mod.operand(row[2 * pair], row[2 * pair + 1]);
                }
            }
        }

        inline fn scoreTile(
            self: *const Self,
            comptime count: usize,
            q: *const Queries,
            token: u32,
        ) [count][tile_mod.score_vectors]F {
            const kv = self.pages.tile(token);
            const tile: tile_mod.Tile = .{
                .k = kv.k,
                .v = kv.v,
                .start = token,
                .later_k = kv.k,
                .later_v = kv.v,
                .later_shift = 0,
            };
            var scores: [count][tile_mod.score_vectors]F = undefined;
            tile_mod.scoreTile(d, count, &tile, q, &scores);
            return scores;
        }
    };
}
