//! Linear layer over a packed weight (layout.zig): out = epilogue(x weight^T + bias) + residual.
//!
//! Every output element is one chain of f32 additions over k in order, whatever the number of rows,
//! threads or items, so a row's bits depend on nothing but the row. All shapes run through the same
//! loops: an item takes a block of rows and some weight tiles; for each block of k it brings the
//! rows' part of x into scratch, and register tiles of R rows x V vectors of columns carry the sums
//! on.
const std = @import("std");
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");
const layout = @import("../layout.zig");
const simd = @import("../simd.zig");
const elementwise = @import("elementwise.zig");
const cut_mod = @import("linear_cut.zig");

const W = simd.W;
const F = simd.F;
const tile = layout.tile;
const tile_vectors = tile / W;

pub const linear = kernel_mod.kernel(types.LinearDesc, &.{Linear});

pub fn packed_weight_bytes(n: u32, k: u32) callconv(.c) u64 {
    return layout.packedWeightBytes(n, k);
}

/// Pairs of k that are worked on at a time: the rows' x and a weight tile's part (96 KiB) stay in
/// the L2 cache while all rows pass.
const block_pairs = 384;

/// Accumulators of a register tile, at most: with weights, a broadcast of x and, where they are
/// needed, widened weights or products they fill the registers. Tall tiles (two vectors wide) need
/// fewer registers besides than wide ones.
const max_accumulators = if (!simd.is_x86 or W == 16) 24 else if (simd.has_fma) 12 else 8;
const max_wide_accumulators = if (!simd.is_x86 or W == 16) 24 else 8;

/// Rows of a register tile at most. With 24 accumulators six rows are then as wide as a weight
/// tile, whose lines are read in order.
const max_tile_rows = @min(6, max_accumulators / 2);

/// Cache lines of one pair of a weight tile.
const pair_lines = tile * 4 / 64;

/// A weight stream that is read once is prefetched this far ahead: 8 KiB, the bytes in flight that
/// one core needs to reach memory's speed.
const near_pairs = 32;

/// One pair of x as the dot product wants it: both bf16 in 32 bits, or already widened where they
/// meet a plain multiply-add.
const XPair = if (simd.bf16_dot) u32 else extern struct { low: f32, high: f32 };

/// Distance of two rows of x in scratch, in pairs: not a multiple of 4 KiB, which would put all
/// rows in the same cache set.
const x_stride = block_pairs + 64 / @sizeOf(XPair);

const x_bytes = cut_mod.max_rows * x_stride * @sizeOf(XPair);
const sums_bytes = cut_mod.max_sums * @sizeOf(f32);

comptime {
    std.debug.assert(x_bytes + sums_bytes <= kernel_mod.scratch_bytes);
}

const Linear = struct {
    pub fn plan(desc: *types.LinearDesc, threads: u32) u32 {
        const cut = cut_mod.choose(desc, threads);
        desc.reserved = @bitCast(cut);
        return cut.items(desc);
    }

    pub fn run(desc: *const types.LinearDesc, item: u32, scratch: *const kernel_mod.Scratch) void {
        const cut: cut_mod.Cut = @bitCast(desc.reserved);
        const part = cut.part(desc, item);
        const x: [*]XPair = @ptrCast(scratch.data);
        const sums: [*]f32 = @ptrCast(@alignCast(scratch.data + x_bytes));
        const walk: Walk = .init(desc, part);
        for (0..walk.steps) |i| {
            const step = walk.at(i);
            const start = step.block * block_pairs;
            const count = @min(block_pairs, walk.pairs - start);
            if (step.slot == 0) loadBlock(desc, part, start, count, x);
            const weight = walk.weight(step) orelse continue;
            const task: Task = .{
                .count = count,
                .first = step.block == 0,
                .x = x,
                .weight = weight,
                .near = i == 0,
                .next = if (i + 1 < walk.steps) walk.weight(walk.at(i + 1)) else null,
                .sums = sums + step.slot * part.rows() * tile,
            };
            task.run(part.rows());
        }
        for (0..part.rows()) |row| finishRow(desc, part, row, sums);
    }
};

/// The order in which an item visits its blocks of weights: all slots of one block of k, then the
/// next block.
const Walk = struct {
    part: cut_mod.Part,
    weights: [*]const u16,
    pairs: usize,
    steps: usize,

    const Step = struct { slot: usize, block: usize };

    fn init(desc: *const types.LinearDesc, part: cut_mod.Part) Walk {
        const pairs = (@as(usize, desc.weight.k) + 1) / 2;
        const blocks = (pairs + block_pairs - 1) / block_pairs;
        return .{
            .part = part,
            .weights = @ptrFromInt(desc.weight.data),
            .pairs = pairs,
            .steps = part.slots() * blocks,
        };
    }

    fn at(walk: Walk, step: usize) Step {
        return .{ .slot = step % walk.part.slots(), .block = step / walk.part.slots() };
    }

    fn weight(walk: Walk, step: Step) ?[*]const u16 {
        const index = walk.part.weightTile(step.slot) orelse return null;
        return walk.weights + (index * walk.pairs + step.block * block_pairs) * 2 * tile;
    }
};

/// Brings pairs [start, start + count) of the item's rows into scratch; an odd k is filled up with
/// a zero.
fn loadBlock(
    desc: *const types.LinearDesc,
    part: cut_mod.Part,
    start: usize,
    count: usize,
    out: [*]XPair,
) void {
    const k: usize = desc.weight.k;
    const length = @min(2 * count, k - 2 * start);
    for (part.row_start..part.row_end, 0..) |row, i| {
        const from = kernel_mod.pointer(u16, desc.x) + row * k + 2 * start;
        const to = out + i * x_stride;
        var j: usize = 0;
        while (j + 2 * W <= length) : (j += 2 * W) storeX(to + j / 2, simd.loadPairs(from + j));
        if (j == length) continue;
        var buffer: [2 * W]u16 = @splat(0);
        @memcpy(buffer[0 .. length - j], from[j..length]);
        storeX(to + j / 2, simd.loadPairs(&buffer));
    }
}

inline fn storeX(to: [*]XPair, pairs: simd.U) void {
    if (simd.bf16_dot) return simd.storePairs(@ptrCast(to), pairs);
    const widened = std.simd.interlace(.{ simd.lowHalves(pairs), simd.highHalves(pairs) });
    @as(*align(4) @Vector(2 * W, f32), @ptrCast(to)).* = widened;
}

const Prefetch = struct { lines: usize, from: [*]const u16 };

/// One step of an item: sums (rows, tile) = or += x (rows, count pairs) times one weight tile's
/// block.
const Task = struct {
    count: usize,
    first: bool,
    x: [*]const XPair,
    weight: [*]const u16,
    /// Nothing of this block has been prefetched.
    near: bool,
    next: ?[*]const u16,
    sums: [*]f32,

    fn run(task: Task, rows: usize) void {
        const passes = (rows + max_tile_rows - 1) / max_tile_rows;
        var row: usize = 0;
        for (0..passes) |pass| {
            const height = (rows - row + passes - pass - 1) / (passes - pass);
            switch (height) {
                inline 1...max_tile_rows => |r| task.rowTile(r, row, pass, passes),
                else => unreachable,
            }
            row += height;
        }
    }

    /// R rows from `row` on, in strips of as many columns as their accumulators fit the registers.
    fn rowTile(task: Task, comptime R: comptime_int, row: usize, pass: usize, passes: usize) void {
        const V = comptime stripVectors(R);
        const strips = tile_vectors / V;
        for (0..strips) |strip| {
            const ahead = task.prefetchOf(pass * strips + strip, passes * strips);
            const column = strip * V * W;
            const x = task.x + row * x_stride;
            const weight = task.weight + 2 * column;
            const sums = task.sums + row * tile + column;
            switch (ahead.lines) {
                inline 0, 1, 2, pair_lines => |lines| {
                    multiplyStrip(R, V, lines, ahead.from, task.count, task.first, x, weight, sums);
                },
                else => unreachable,
            }
        }
    }

    /// What one of `turns` passes over this block prefetches, in lines a pair. The only pass and
    /// the first of an item run just ahead of themselves, into L1; of several passes each takes its
    /// share of the next block, into L2, so that memory is always busy.
    fn prefetchOf(task: Task, turn: usize, turns: usize) Prefetch {
        if (turns == 1 or (turn == 0 and task.near)) {
            return .{ .lines = pair_lines, .from = task.weight + near_pairs * 2 * tile };
        }
        const next = task.next orelse return .{ .lines = 0, .from = task.weight };
        const lines: usize = if (turns < pair_lines) 2 else 1;
        if (turn * lines >= pair_lines) return .{ .lines = 0, .from = next };
        return .{ .lines = lines, .from = next + turn * lines * task.count * 32 };
    }
};

fn stripVectors(comptime R: comptime_int) comptime_int {
    var vectors = 2;
    while (vectors * 2 <= tile_vectors and vectors * 2 * R <= max_wide_accumulators) vectors *= 2;
    return vectors;
}

fn multiplyStrip(
    comptime R: comptime_int,
    comptime V: comptime_int,
    comptime lines: comptime_int,
    ahead: [*]const u16,
    count: usize,
    first: bool,
    x: [*]const XPair,
    weight: [*]const u16,
    sums: [*]f32,
) void {
    var acc: [R][V]F = @splat(@splat(simd.splat(0)));
    if (!first) {
        inline for (0..R) |r| inline for (0..V) |v| {
            acc[r][v] = simd.loadF(sums + r * tile + v * W);
        };
    }
    for (0..count) |p| {
        inline for (0..lines) |line| {
            const from = ahead + (p * lines + line) * 32;
            if (lines == pair_lines) simd.prefetch(from) else simd.prefetchL2(from);
        }
        const at = weight + p * 2 * tile;
        inline for (0..R) |r| {
            const pair = splatX(x[r * x_stride + p]);
            inline for (0..V) |v| {
                acc[r][v] = simd.dotPairs(acc[r][v], simd.loadPairs(at + v * 2 * W), pair);
            }
        }
    }
    inline for (0..R) |r| inline for (0..V) |v| simd.storeF(sums + r * tile + v * W, acc[r][v]);
}

inline fn splatX(pair: XPair) simd.PairSplat {
    if (simd.bf16_dot) return simd.splatPair(pair);
    return .{ .low = simd.splat(pair.low), .high = simd.splat(pair.high) };
}

/// Epilogue of one row of the item.
fn finishRow(desc: *const types.LinearDesc, part: cut_mod.Part, row: usize, sums: [*]f32) void {
    for (part.tile_start..part.tile_end, 0..) |out_tile, i| {
        const column = out_tile * tile;
        const count = @min(tile, part.columns - column);
        const slot = sums + i * part.slots_per_tile * part.rows() * tile + row * tile;
        addBias(desc, column, count, slot);
        if (desc.epilogue == .silu_mul) gateRow(desc, part, column, count, slot);
        storeRow(desc, (part.row_start + row) * part.columns + column, count, slot);
    }
}

fn addBias(desc: *const types.LinearDesc, column: usize, count: usize, values: [*]f32) void {
    const bias = kernel_mod.optional(u16, desc.bias) orelse return;
    for (values[0..count], bias + column) |*value, b| value.* += simd.bf16ToF32(b);
}

/// slot = silu(slot) * up. The up columns lie in the next one or two slots, shifted where n / 2 is
/// no multiple of a tile.
fn gateRow(
    desc: *const types.LinearDesc,
    part: cut_mod.Part,
    column: usize,
    count: usize,
    slot: [*]f32,
) void {
    const shift = part.columns % tile;
    const next = slot + part.rows() * tile;
    var up: [tile]f32 = @splat(0);
    @memcpy(up[0 .. tile - shift], next[shift..tile]);
    if (shift > 0) @memcpy(up[tile - shift ..], (next + part.rows() * tile)[0..shift]);
    addBias(desc, part.columns + column, count, &up);
    inline for (0..tile_vectors) |v| {
        const gate = elementwise.silu(simd.loadF(slot + v * W));
        simd.storeF(slot + v * W, gate * simd.loadF(up[v * W ..].ptr));
    }
}

fn storeRow(desc: *const types.LinearDesc, offset: usize, count: usize, values: [*]f32) void {
    if (kernel_mod.optional(u16, desc.residual)) |residual| {
        for (values[0..count], residual + offset) |*value, r| value.* += simd.bf16ToF32(r);
    }
    if (desc.out.dtype == .f32) {
        @memcpy(kernel_mod.pointer(f32, desc.out)[offset..][0..count], values);
        return;
    }
    const out = kernel_mod.pointer(u16, desc.out) + offset;
    var i: usize = 0;
    while (i + W <= count) : (i += W) simd.storeBf16(out + i, simd.loadF(values + i));
    while (i < count) : (i += 1) out[i] = simd.f32ToBf16(values[i]);
}

const testing = @import("../testing.zig");
const reference = @import("../../tests/reference_dense.zig");
const weight_pack = @import("weight_pack.zig").weight_pack;

/// Random operands of one linear layer, its weight packed.
const Case = struct {
    rows: u32,
    n: u32,
    k: u32,
    epilogue: types.Epilogue = .none,
    x: []u16,
    weight: []u16,
    bias: []u16,
    residual: []u16,
    packed_weight: []u16,

    fn init(random: std.Random, rows: u32, n: u32, k: u32, epilogue: types.Epilogue) !Case {
        const gpa = std.testing.allocator;
        const columns = if (epilogue == .silu_mul) n / 2 else n;
        const case: Case = .{
            .rows = rows,
            .n = n,
            .k = k,
            .epilogue = epilogue,
            .x = try testing.randomBf16(random, rows * k, 1),
            .weight = try testing.randomBf16(random, n * k, 1),
            .bias = try testing.randomBf16(random, n, 1),
            .residual = try testing.randomBf16(random, rows * columns, 1),
            .packed_weight = try gpa.alignedAlloc(u16, .@"64", packed_weight_bytes(n, k) / 2),
        };
        @memset(case.packed_weight, 0);
        try testing.run(weight_pack, &types.PackDesc{
            .source = testing.tensor(case.weight, &.{ n, k }),
            .offset = 0,
            .weight = case.packedWeight(),
            .row_offset = 0,
            .file = 0,
        }, 2);
        return case;
    }

    fn deinit(case: Case) void {
        const gpa = std.testing.allocator;
        inline for (.{ case.x, case.weight, case.bias, case.residual }) |slice| gpa.free(slice);
        gpa.free(@as([]align(64) u16, @alignCast(case.packed_weight)));
    }

    fn packedWeight(case: Case) types.Weight {
        return .{
            .data = @intFromPtr(case.packed_weight.ptr),
            .bytes = case.packed_weight.len * 2,
            .n = case.n,
            .k = case.k,
        };
    }

    fn outColumns(case: Case) u32 {
        return if (case.epilogue == .silu_mul) case.n / 2 else case.n;
    }

    /// The descriptor for `count` rows from `first` on, with bias and residual.
    fn desc(case: Case, first: u32, count: u32, out: anytype) types.LinearDesc {
        const columns = case.outColumns();
        return .{
            .x = testing.tensor(case.x[first * case.k ..], &.{ count, case.k }),
            .weight = case.packedWeight(),
            .bias = testing.tensor(case.bias, &.{case.n}),
            .residual = testing.tensor(case.residual[first * columns ..], &.{ count, columns }),
            .out = testing.tensor(out, &.{ count, columns }),
            .epilogue = case.epilogue,
        };
    }

    fn expectRight(case: Case, got: anytype, bias: bool, residual: bool) !void {
        const columns = case.outColumns();
        const want = try std.testing.allocator.alloc(f64, case.rows * columns);
        defer std.testing.allocator.free(want);
        const layer: reference.Linear = .{
            .rows = case.rows,
            .n = case.n,
            .k = case.k,
            .x = case.x,
            .weight = case.weight,
            .bias = if (bias) case.bias else null,
            .residual = if (residual) case.residual else null,
            .silu_mul = case.epilogue == .silu_mul,
        };
        for (want, 0..) |*value, i| value.* = layer.at(i / columns, i % columns);
        const is_bf16 = @TypeOf(got) == []u16;
        const size = @sqrt(@as(f64, @floatFromInt(case.k)));
        const slack: f64 = if (case.epilogue == .silu_mul) size * size else size;
        try testing.expectClose(want, got, if (is_bf16) 5e-3 else 1e-4, slack * 2e-5);
    }
};

test "linear against f64 over shapes, epilogues and output types" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    const random = prng.random();
    const shapes = [_][3]u32{
        .{ 1, 1, 1 },      .{ 1, 64, 2 },     .{ 2, 63, 3 },    .{ 3, 65, 17 },  .{ 4, 128, 64 },
        .{ 5, 130, 33 },   .{ 6, 192, 31 },   .{ 7, 70, 767 },  .{ 8, 96, 768 }, .{ 13, 200, 769 },
        .{ 12, 128, 770 }, .{ 40, 256, 256 }, .{ 97, 72, 100 }, .{ 200, 66, 5 }, .{ 1, 520, 2000 },
    };
    for (shapes) |shape| for ([_]types.Epilogue{ .none, .silu_mul }) |epilogue| {
        const n = if (epilogue == .silu_mul) 2 * shape[1] else shape[1];
        const case: Case = try .init(random, shape[0], n, shape[2], epilogue);
        defer case.deinit();
        const out = try gpa.alloc(f32, case.rows * case.outColumns());
        defer gpa.free(out);
        try testing.run(linear, &case.desc(0, case.rows, out), 3);
        try case.expectRight(out, true, true);

        var plain = case.desc(0, case.rows, out);
        plain.bias = .{};
        plain.residual = .{};
        try testing.run(linear, &plain, 1);
        try case.expectRight(out, false, false);

        const aliased = try gpa.dupe(u16, case.residual);
        defer gpa.free(aliased);
        var in_place = case.desc(0, case.rows, aliased);
        in_place.residual = in_place.out;
        try testing.run(linear, &in_place, 16);
        try case.expectRight(aliased, true, true);
    };
}

test "a row's bits depend neither on the other rows nor on threads" {
    const gpa = std.testing.allocator;
    var prng = std.Random.DefaultPrng.init(std.testing.random_seed);
    for ([_]types.Epilogue{ .none, .silu_mul }) |epilogue| {
        const case: Case = try .init(prng.random(), 130, 150, 1601, epilogue);
        defer case.deinit();
        const columns = case.outColumns();
        const alone = try gpa.alloc(f32, case.rows * columns);
        defer gpa.free(alone);
        for (0..case.rows) |row| {
            try testing.run(linear, &case.desc(@intCast(row), 1, alone[row * columns ..]), 1);
        }
        const together = try gpa.alloc(f32, case.rows * columns);
        defer gpa.free(together);
        for (1..71) |rows| for ([_]u32{ 1, 2, 7 }) |threads| {
            try expectSameRows(case, @intCast(rows), threads, alone, together);
        };
        for ([_]u32{ 96, 97, 130 }) |rows| try expectSameRows(case, rows, 16, alone, together);
    }
}

fn expectSameRows(case: Case, rows: u32, threads: u32, alone: []const f32, together: []f32) !void {
    const first = case.rows - rows;
    const columns = case.outColumns();
    try testing.run(linear, &case.desc(first, rows, together), threads);
    const want: []const u32 = @ptrCast(alone[first * columns ..]);
    try std.testing.expectEqualSlices(u32, want, @ptrCast(together[0 .. rows * columns]));
}
