//! One block of query rows over a run of chunks: the rows' state, and the loops over chunks, tiles
//! and register tiles.
const std = @import("std");
const simd = @import("../simd.zig");
const layout = @import("../layout.zig");
const tile_mod = @import("attention_tile.zig");
const source_mod = @import("attention_source.zig");
const plan_mod = @import("attention_plan.zig");

const Operand = tile_mod.Operand;
const block_rows = plan_mod.block_rows;
/// Tiles between the one that is read and the one that is prefetched.
const ahead_tiles = 1;

/// Up to 4 register tiles share the prefetching of a tile.
const max_later_shift = 2;

/// Shifts every prefetch onto the first lines, which are there already.
const no_prefetch = std.math.maxInt(u5);

const max_tiles = block_rows / tile_mod.max_rows + 1;

/// The result of a row over some chunks: sums weighted by 2^(log2 * (score - max)).
pub fn Result(comptime d: usize) type {
    return extern struct {
        acc: [d]f32,
        max: f32,
        sum: f32,
        padding: [14]f32,

        comptime {
            std.debug.assert(@sizeOf(@This()) == plan_mod.partialFloats(d) * @sizeOf(f32));
        }

        pub fn clear(self: *@This()) void {
            self.acc = @splat(0);
            self.max = tile_mod.lowest;
            self.sum = 0;
        }

        /// self = self followed by `next`; a `next` that saw no token changes nothing.
        pub fn fold(
            self: *@This(),
            acc: *const [d]f32,
            max: f32,
            sum: f32,
            scale: *const tile_mod.Scale,
        ) void {
            if (sum == 0) return;
            const difference = simd.splat(-@abs(self.max - max) * scale.log2);
            const factor = tile_mod.exp2(difference);
            const one = simd.splat(1);
            const grows = max > self.max;
            const mine = if (grows) factor else one;
            const other = if (grows) one else factor;
            for (0..d / simd.W) |j| {
                const p = self.acc[j * simd.W ..].ptr;
                const x = simd.loadF(acc[j * simd.W ..].ptr);
                simd.storeF(p, simd.mulAdd(x, other, simd.loadF(p) * mine));
            }
            self.sum = simd.mulAdd(simd.splat(sum), other, simd.splat(self.sum) * mine)[0];
            if (grows) self.max = max;
        }

        /// acc / sum as bf16; zeros where nothing was seen. Adding 0 makes the zero of a masked-out
        /// sign positive.
        pub fn store(self: *const @This(), out: [*]u16) void {
            const inverse = simd.splat(if (self.sum > 0) 1 / self.sum else 0);
            for (0..d / simd.W) |j| {
                const x = simd.loadF(self.acc[j * simd.W ..].ptr) * inverse;
                simd.storeBf16(out + j * simd.W, x + simd.splat(0));
            }
        }
    };
}

/// State of one block in a thread's scratch.
pub fn Block(comptime d: usize) type {
    return struct {
        const Self = @This();

        acc: [block_rows][d]f32 align(64),
        sum: [block_rows]simd.F align(64),
        max: [block_rows]f32,
        low: [block_rows]u32,
        high: [block_rows]u32,
        /// by register tile: (d / 2, rows of the tile)
        q: [block_rows * d / 2]Operand align(64),
        results: [block_rows]Result(d) align(64),
        gathered_k: [layout.tile * d]u16 align(64),
        gathered_v: [layout.tile * d]u16 align(64),
        rows: u32,
        tiles: u32,
        tile_first: [max_tiles + 1]u32,
        tile_low: [max_tiles]u32,
        tile_high: [max_tiles]u32,
        scale: tile_mod.Scale,

        /// Cuts `rows` rows into register tiles of nearly equal size.
        pub fn init(self: *Self, rows: u32, scale: f32) void {
            self.rows = rows;
            self.tiles = (rows + tile_mod.max_rows - 1) / tile_mod.max_rows;
            for (0..self.tiles + 1) |i| self.tile_first[i] = @intCast(rows * i / self.tiles);
            self.scale = .init(scale);
        }

        /// Packs q, whose row r starts at q[r], for broadcasting.
        pub fn loadQueries(self: *Self, q: []const [*]const u16) void {
            for (0..self.tiles) |i| {
                const first = self.tile_first[i];
                const count = self.tile_first[i + 1] - first;
                const out = self.q[first * d / 2 ..].ptr;
                for (q[first..][0..count], 0..) |row, r| {
                    for (0..d / 2) |pair| {
                        out[pair * count + r] = tile_mod.operand(row[2 * pair], row[2 * pair + 1]);
                    }
                }
            }
        }

        /// Takes low and high, which the caller has set, as the rows' token ranges.
        pub fn setRanges(self: *Self) void {
            for (0..self.tiles) |i| {
                const first = self.tile_first[i];
                const end = self.tile_first[i + 1];
                self.tile_low[i] = std.mem.min(u32, self.low[first..end]);
                self.tile_high[i] = std.mem.max(u32, self.high[first..end]);
            }
        }

        pub fn clearResults(self: *Self) void {
            for (self.results[0..self.rows]) |*result| result.clear();
        }

        /// Attends all rows to tokens [begin, end) of one chunk of `pages`, or to the tokens that
        /// indices[begin .. end) name. Tiles before `ahead_end` are prefetched beyond `end`, and after
        /// them `follow`: what this item reads next.
        pub fn attend(
            self: *Self,
            pages: *const source_mod.Pages,
            indices: ?[*]const i32,
            begin: u32,
            end: u32,
            ahead_end: u32,
            follow: ?source_mod.Pair,
        ) void {
            @memset(self.max[0..self.rows], tile_mod.lowest);
            @memset(self.sum[0..self.rows], simd.splat(0));
            @memset(self.acc[0..self.rows], @splat(0));
            const low = std.mem.min(u32, self.tile_low[0..self.tiles]);
            const high = @min(end, std.mem.max(u32, self.tile_high[0..self.tiles]));
            var token = @max(begin, low - low % layout.tile);
            while (token < high) : (token += layout.tile) {
                const kv = if (indices) |list| gathered: {
                    const count = @min(layout.tile, high - token);
                    source_mod.gatherTile(
                        pages,
                        list[token..][0..count],
                        &self.gathered_k,
                        &self.gathered_v,
                    );
                    break :gathered source_mod.Pair{ .k = &self.gathered_k, .v = &self.gathered_v };
                } else pages.tile(token);
                const next = token + ahead_tiles * layout.tile;
                const later = if (indices == null and next < ahead_end)
                    pages.tile(next)
                else
                    follow;
                self.attendTile(.{
                    .k = kv.k,
                    .v = kv.v,
                    .start = token,
                    .later_k = if (later) |pair| pair.k else kv.k,
                    .later_v = if (later) |pair| pair.v else kv.v,
                    .later_shift = if (later == null) no_prefetch else 0,
                });
            }
        }

        fn attendTile(self: *Self, whole: tile_mod.Tile) void {
            var tile = whole;
            const shift: u5 = @intCast(@min(std.math.log2_int(u32, self.tiles), max_later_shift));
            if (tile.later_shift != no_prefetch) tile.later_shift = shift;
            var parts = @as(u32, 1) << shift;
            for (0..self.tiles) |i| {
                const end = tile.start + layout.tile;
                const high = self.tile_high[i];
                if (self.tile_low[i] >= @min(end, high) or high <= tile.start) continue;
                tile.low = self.tile_low[i] -| tile.start;
                tile.high = @min(high - tile.start, layout.tile);
                const first = self.tile_first[i];
                const state: tile_mod.Rows(d) = .{
                    .q = self.q[first * d / 2 ..].ptr,
                    .low = self.low[first..].ptr,
                    .high = self.high[first..].ptr,
                    .max = self.max[first..].ptr,
                    .sum = self.sum[first..].ptr,
                    .acc = self.acc[first..].ptr,
                };
                switch (self.tile_first[i + 1] - first) {
                    inline 1...tile_mod.max_rows => |rows| {
                        tile_mod.step(d, rows, &tile, &state, &self.scale);
                    },
                    else => unreachable,
                }
                parts -= 1;
                if (parts > 0) {
                    tile.later_k += layout.tile * d >> shift;
                    tile.later_v += layout.tile * d >> shift;
                } else {
                    tile.later_shift = no_prefetch;
                    parts = 1;
                }
            }
        }

        /// Folds the chunk just attended into the rows' results.
        pub fn foldChunk(self: *Self) void {
            for (self.results[0..self.rows], 0..) |*result, r| {
                result.fold(&self.acc[r], self.max[r], tile_mod.sumLanes(self.sum[r]), &self.scale);
            }
        }

        /// Writes row r of the chunk just attended as a partial.
        pub fn storeChunk(self: *const Self, r: usize, out: *Result(d)) void {
            out.acc = self.acc[r];
            out.max = self.max[r];
            out.sum = tile_mod.sumLanes(self.sum[r]);
        }
    };
}
