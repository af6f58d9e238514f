//! The tuning table of the CUDA backend: a section an op, a reason beside each number.
const std = @import("std");

/// src/attention_prefill.cu: the numbers are its PrefillShape. Figures are TFLOP/s, causal, of 32
/// query heads on 8 KV heads and one sequence: one run on one H200, so 2 % apart may mean nothing.
pub const attention_prefill = struct {
    /// Q comes in panels of one warpgroup's rows and 128 bytes.
    pub const box_rows = 64;
    pub const box_columns = 64;
    /// Blocks at work at a time read the cache of so many KV heads, which should stay in the L2. 1, 2,
    /// 4 and 8 give 627, 616, 635 and 622 at 16K tokens, 643, 637, 651 and 643 at 64K.
    pub const kv_heads_together = 4;

    pub const Shape = struct {
        /// Of 64 rows each; one's softmax runs under the others' products. One more only loads.
        warpgroups: u32,
        /// Tokens of one softmax step.
        tokens: u32 = 128,
        /// Tiles of K and of V in shared memory.
        stages: u32,

        pub fn rows(shape: Shape) u32 {
            return shape.warpgroups * 64;
        }

        pub fn threads(shape: Shape) u32 {
            return (shape.warpgroups + 1) * 128;
        }

        /// Q, the stages of K and V, the barriers, and alignment.
        pub fn sharedBytes(shape: Shape, head_dim: u32) u32 {
            const vectors = shape.rows() + 2 * shape.stages * shape.tokens;
            return vectors * head_dim * @sizeOf(u16) + 2 * 1024;
        }
    };

    /// Head dim 64: a third warpgroup fits the registers, and the exponentials, which take as long
    /// as the products there, gain by it: 513 at 64K, two give 465.
    pub const head_dim_64: Shape = .{ .warpgroups = 3, .stages = 3 };
    /// Head dim 128: a third warpgroup would leave room for steps of 64 tokens only: 619 at 64K
    /// against 623, and 518 against 563 at 4K. Three stages, with Q in registers: 622, and 602
    /// against 614 at 16K.
    pub const head_dim_128: Shape = .{ .warpgroups = 2, .stages = 2 };
};

/// src/linear_skinny.cu: up to 16 rows. Microseconds of the four layers of Llama-3.1-8B (436 MB) in a
/// chain on one H200: 105 at 1 and 8 rows, 112 at 16, where the reads alone take 95.
pub const linear_skinny = struct {
    /// More rows are linear_tiled's.
    pub const most_rows = 16;
    /// One for each segment of k.
    pub const warps = 8;
    /// A pass takes all that a block has, up to three (384 units of qkv over 132 blocks), so that x is
    /// read once: 109 us where every unit is a pass of its own give 112.
    pub const most_units = 3;
    /// Where a block has more.
    pub const units_of_many = 2;

    /// Slabs of a warp in flight. At 8 rows five, 160 KB a block, give 105 us, three 109; at 16 rows x
    /// takes the room of two.
    fn ring(tokens: u32) u32 {
        return if (tokens == 8) 5 else 3;
    }

    /// SkinnyShared of src/linear_skinny.cu.
    pub fn sharedBytes(tokens: u32, units: u32, silu_mul: bool) u32 {
        const slabs: u32 = units * @as(u32, if (silu_mul) 2 else 1);
        const weights = warps * ring(tokens) * 16 * 128 * @sizeOf(u16);
        const x = warps * 2 * tokens * 128 * @sizeOf(u16);
        const sums = 2 * warps * slabs * tokens * 16 * @sizeOf(f32);
        const barriers = warps * ring(tokens) * @sizeOf(u64);
        return std.mem.alignForward(u32, weights + x + sums + barriers, 1024);
    }
};

/// src/linear_cluster.cu: the numbers are its ClusterShape.
pub const linear_cluster = struct {
    /// Of a tile. A layer of Llama-3.1-8B takes 112 us with 32 rows where linear_tiled takes 115. With
    /// 64 the sums on their way leave room for less of the weights, and nothing is gained.
    pub const tokens = 32;
    pub const tile_rows = 128;
    /// As many tiles a multiprocessor are linear_tiled's: 128256 columns take 257 us here, 244 there.
    pub const most_rounds = 4;
    /// Blocks of a cluster, one for each segment of k.
    pub const blocks = 8;
    /// Eight warps multiply, four add up; of the last four two bring weights and tokens.
    pub const threads = 16 * 32;
    const weight_stages = 5;
    const token_stages = 6;
    const receives = 2;

    pub fn sharedBytes() u32 {
        const weights = weight_stages * tile_rows * 128 * @sizeOf(u16);
        const x = token_stages * tokens * linear_tiled.box_columns * @sizeOf(u16);
        // A tile's sums of every segment for the rows of one block.
        const sums = receives * tile_rows * tokens * @sizeOf(f32);
        const barriers = 2 * (weight_stages + token_stages + receives) * @sizeOf(u64);
        return weights + x + sums + barriers + 2 * 1024;
    }
};

/// src/linear_tiled.cu: the numbers are its TiledShape.
pub const linear_tiled = struct {
    /// Weight rows of a tile: two warpgroups of 64.
    pub const tile_rows = 128;
    pub const box_columns = 64;
    pub const threads = 384;
    /// Token tiles computed next to each other: with up to 24 of them the tokens of a band stay in
    /// the L2, 560 TFLOP/s at 4096 rows, where 48 give 542.
    pub const band = 24;

    pub const Shape = struct {
        tokens: u32,
        /// Of 128 weight rows x 128 k, and of the tokens x 64 k. In all what a block may have:
        /// 160 KB of weights in flight fill the memory's latency, with many tokens the two rings
        /// last equally long.
        weight_stages: u32,
        token_stages: u32,
        /// What 128 k of a tile take, and what adding up tiles that are cut between blocks takes: one
        /// H200, 32 to 512 rows.
        slab_ns: u32,
        split_ns: u32,

        pub fn sharedBytes(shape: Shape) u32 {
            const weights = shape.weight_stages * tile_rows * 128 * @sizeOf(u16);
            const x = shape.token_stages * shape.tokens * box_columns * @sizeOf(u16);
            const turn = 8 * 16 * 16 * @sizeOf(f32);
            const barriers = (shape.weight_stages + shape.token_stages) * 2 * @sizeOf(u64);
            return weights + x + turn + barriers + 1024;
        }
    };

    /// 192 tokens, whose sums fill the registers, were slower at every number of rows.
    pub const shapes = [_]Shape{
        .{ .tokens = 32, .weight_stages = 5, .token_stages = 12, .slab_ns = 620, .split_ns = 9000 },
        .{ .tokens = 64, .weight_stages = 5, .token_stages = 6, .slab_ns = 620, .split_ns = 11000 },
        .{ .tokens = 128, .weight_stages = 4, .token_stages = 5, .slab_ns = 800, .split_ns = 16000 },
    };
};

/// src/attention_decode.cu: the numbers are its DecodeShapes. Figures are TB/s on one H200, of 32
/// query heads on 8 KV heads of 128 at 32 x 16384, 16 x 32768, 4 x 131072 and 1 x 131072 tokens.
pub const attention_decode = struct {
    pub const Shape = struct {
        /// Packed (row, query head) pairs of one KV head that a block takes together.
        rows: u32,
        /// Of four warps, which share out a tile's tokens and then the columns of V.
        row_warps: u32,
        /// Tiles of K or V in shared memory: as many as fit, because they are the bytes in flight.
        slots: u32,
        /// Two hide each other's barriers and merges.
        blocks_per_sm: u32,

        /// One more warp loads; it is alone in a warpgroup, because registers are moved by
        /// warpgroups.
        pub fn threads(shape: Shape) u32 {
            return (shape.row_warps + 1) * 128;
        }

        /// DecodeShape's kSharedBytes, which the kernel compares with the size of its DecodeShared.
        pub fn sharedBytes(shape: Shape, head_dim: u32) u32 {
            const ring = shape.slots * (64 * head_dim * @sizeOf(u16) + 2 * @sizeOf(u64));
            // Weights of a tile's tokens, the queries, and a maximum of each of the four warps.
            const row_bytes = 64 * @sizeOf(u16) + head_dim * @sizeOf(u16) + 4 * @sizeOf(f32);
            // What the loading warp hands over.
            const runs = 1196;
            return std.mem.alignForward(u32, ring + shape.rows * row_bytes + runs, 1024);
        }

        /// Unnormalised output, maximum and sum of each row.
        pub fn partialBytes(shape: Shape, head_dim: u32) u32 {
            return shape.rows * (head_dim + 2) * @sizeOf(f32);
        }
    };

    /// The least that holds the rows of a sequence is taken: padding costs registers and time. Which
    /// one it is changes no bit. 16 rows let two blocks share a multiprocessor. With 32 rows each row
    /// tile has warps of its own in one block: 4.50, 4.45, 4.27 and 3.81 in short runs, where two blocks
    /// of four warps with two row tiles each give 4.39, 4.27, 4.15 and 3.78. With 64 rows the registers leave
    /// one block, of two row tiles a warp.
    pub fn shapes(comptime head_dim: u32) []const Shape {
        return switch (head_dim) {
            64 => &comptime with(12),
            96 => &comptime with(8),
            128 => &comptime with(6),
            // A tile is 32 KB: two blocks have no room beside each other, and 64 rows would leave
            // fewer tiles.
            256 => &.{
                .{ .rows = 16, .row_warps = 1, .slots = 6, .blocks_per_sm = 1 },
                .{ .rows = 32, .row_warps = 2, .slots = 6, .blocks_per_sm = 1 },
            },
            else => comptime unreachable,
        };
    }

    /// `slots` are those of half a multiprocessor.
    fn with(comptime slots: u32) [3]Shape {
        return .{
            .{ .rows = 16, .row_warps = 1, .slots = slots, .blocks_per_sm = 2 },
            .{ .rows = 32, .row_warps = 2, .slots = 2 * slots, .blocks_per_sm = 1 },
            .{ .rows = 64, .row_warps = 2, .slots = 2 * slots, .blocks_per_sm = 1 },
        };
    }
};
