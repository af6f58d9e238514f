//! Linear layers of more than 16 rows on Hopper. The kernel is described in src/linear_tiled.cu.
const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const layout = @import("../layout.zig");
const tensor_map = @import("../tensor_map.zig");
const tiles = @import("../tiles.zig").linear_tiled;
const Context = @import("../context.zig").Context;

/// LinearTiledParams in src/linear_tiled.cu.
const Params = extern struct {
    x: tensor_map.TensorMap,
    weight: u64,
    bias: u64,
    residual: u64,
    out: u64,
    partials: u64,
    arrivals: u64,
    rows: u32,
    columns: u32,
    slabs: u32,
    segments: u32,
    silu_mul: u32,
    out_f32: u32,
    weight_tiles: u32,
    token_tiles: u32,
    whole_tiles: u32,
    band: u32,
    run: u32,
    slots: u32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 256);
}

/// K is cut into so many segments, or one for each slab of it.
const most_segments = 8;
/// Warps that count arrivals at a split tile.
const warps = 8;

const Problem = struct { rows: u32, columns: u32, k: u32, silu_mul: bool };

/// How the tiles of a problem are spread over the chip.
const Plan = struct {
    shape: tiles.Shape,
    segments: u32,
    weight_tiles: u32,
    token_tiles: u32,
    band: u32,
    /// Tiles that one block computes alone; the units (tile, segment) of the others go to blocks in
    /// runs of `run`, each of which may hand over `slots` sums.
    whole_tiles: u32,
    run: u32,
    slots: u32,
    blocks: u32,
    /// Of the busiest block, in units.
    units: u32,

    fn of(shape: tiles.Shape, problem: Problem, chip: u32) Plan {
        const tile_columns: u32 = if (problem.silu_mul) tiles.tile_rows / 2 else tiles.tile_rows;
        const segments = @min(most_segments, access.blocks(problem.k, layout.slab_k));
        const weight_tiles = access.blocks(problem.columns, tile_columns);
        const token_tiles = access.blocks(problem.rows, shape.tokens);
        const count = weight_tiles * token_tiles;
        const waves = access.blocks(count, chip);
        const whole: Plan = .{
            .shape = shape,
            .segments = segments,
            .weight_tiles = weight_tiles,
            .token_tiles = token_tiles,
            .band = access.blocks(token_tiles, access.blocks(token_tiles, tiles.band)),
            .whole_tiles = count,
            .run = 0,
            .slots = 0,
            .blocks = @min(count, chip),
            .units = waves * segments,
        };
        if (whole.band < token_tiles) return whole;
        const split = whole.splitAfter((waves -| 2) * chip / token_tiles * token_tiles, chip);
        const fits = split.partialBytes() <= Context.scratch_bytes;
        return if (fits and split.nanoseconds(problem.k) < whole.nanoseconds(problem.k)) split else whole;
    }

    /// The last tiles, of one to two rounds of the chip, as evenly as their segments go.
    fn splitAfter(whole: Plan, keep: u32, chip: u32) Plan {
        const units = (whole.whole_tiles - keep) * whole.segments;
        var split = whole;
        split.whole_tiles = keep;
        split.run = access.blocks(units, chip);
        split.slots = @min(split.run, whole.segments - 1);
        split.blocks = @max(access.blocks(units, split.run), @min(keep, chip));
        split.units = access.blocks(keep, chip) * whole.segments + split.run;
        return split;
    }

    fn partialBytes(plan: Plan) u64 {
        const tile_bytes = tiles.tile_rows * plan.shape.tokens * @sizeOf(f32);
        return @as(u64, plan.blocks) * plan.slots * tile_bytes;
    }

    /// What it takes, to choose between plans by.
    fn nanoseconds(plan: Plan, k: u32) u64 {
        const slabs = @as(u64, plan.units) * access.blocks(k, layout.slab_k) / plan.segments;
        return slabs * plan.shape.slab_ns + if (plan.run > 0) plan.shape.split_ns else 0;
    }

    /// One tile of tokens where that will do, otherwise the faster of the two largest.
    fn best(problem: Problem, chip: u32) Plan {
        if (problem.rows <= tiles.shapes[0].tokens) return of(tiles.shapes[0], problem, chip);
        const small = of(tiles.shapes[1], problem, chip);
        if (problem.rows <= small.shape.tokens) return small;
        const large = of(tiles.shapes[2], problem, chip);
        return if (small.nanoseconds(problem.k) < large.nanoseconds(problem.k)) small else large;
    }
};

/// Whether this kernel computes it; whether it may does not depend on the number of rows.
pub fn takes(ctx: *const Context, desc: *const types.LinearDesc) bool {
    const shapes_fit = outputColumns(desc) % layout.slab_rows == 0 and
        desc.weight.k % tiles.box_columns == 0;
    return ctx.hopper() and shapes_fit and access.wide(&.{
        desc.x.data,   desc.weight.data,   desc.bias.data,
        desc.out.data, desc.residual.data,
    });
}

/// `desc` is one that the kernel takes, of at least one row.
pub fn linear(ctx: *Context, desc: *const types.LinearDesc) errors.Error!void {
    const plan = Plan.best(.{
        .rows = desc.x.shape[0],
        .columns = outputColumns(desc),
        .k = desc.weight.k,
        .silu_mul = desc.epilogue == .silu_mul,
    }, ctx.sm_count);
    return switch (plan.shape.tokens) {
        32 => enqueue(ctx, desc, &plan, "md_linear_tiled_32"),
        64 => enqueue(ctx, desc, &plan, "md_linear_tiled_64"),
        128 => enqueue(ctx, desc, &plan, "md_linear_tiled_128"),
        else => unreachable,
    };
}

pub fn outputColumns(desc: *const types.LinearDesc) u32 {
    return if (desc.epilogue == .silu_mul) desc.weight.n / 2 else desc.weight.n;
}

/// Of x, in boxes of so many rows.
pub fn tokenMap(
    ctx: *Context,
    desc: *const types.LinearDesc,
    tokens: u32,
) errors.Error!tensor_map.TensorMap {
    const k = desc.weight.k;
    return tensor_map.encode2d(
        ctx,
        .bf16,
        desc.x.data,
        desc.x.shape[0],
        k,
        @as(u64, k) * @sizeOf(u16),
        tokens,
        tiles.box_columns,
        .b128,
    );
}

fn enqueue(
    ctx: *Context,
    desc: *const types.LinearDesc,
    plan: *const Plan,
    comptime name: [:0]const u8,
) errors.Error!void {
    const rows = desc.x.shape[0];
    const k = desc.weight.k;
    const params: Params = .{
        .x = try tokenMap(ctx, desc, plan.shape.tokens),
        .weight = desc.weight.data,
        .bias = desc.bias.data,
        .residual = desc.residual.data,
        .out = desc.out.data,
        .partials = ctx.scratch,
        .arrivals = ctx.tickets,
        .rows = rows,
        .columns = outputColumns(desc),
        .slabs = access.blocks(k, layout.slab_k),
        .segments = plan.segments,
        .silu_mul = @intFromBool(desc.epilogue == .silu_mul),
        .out_f32 = @intFromBool(desc.out.dtype == .f32),
        .weight_tiles = plan.weight_tiles,
        .token_tiles = plan.token_tiles,
        .whole_tiles = plan.whole_tiles,
        .band = plan.band,
        .run = plan.run,
        .slots = plan.slots,
    };
    const split_tiles = plan.weight_tiles * plan.token_tiles - plan.whole_tiles;
    std.debug.assert(split_tiles * warps <= Context.ticket_count);
    return ctx.launch(.{ .module = .linear_tiled, .name = name }, .{
        .grid = .{ plan.blocks, 1, 1 },
        .block = tiles.threads,
        .shared_bytes = plan.shape.sharedBytes(),
    }, &params);
}

test "the runs of split tiles cover their units, and what they hand over fits" {
    for ([_]u32{ 17, 64, 100, 192, 256, 300, 512, 4096 }) |rows| {
        for ([_][2]u32{ .{ 6144, 4096 }, .{ 4096, 14336 }, .{ 48, 192 } }) |size| {
            const columns, const k = size;
            for ([_]u32{ 132, 114, 7 }) |chip| {
                const plan = Plan.best(
                    .{ .rows = rows, .columns = columns, .k = k, .silu_mul = false },
                    chip,
                );
                const count = plan.weight_tiles * plan.token_tiles;
                try std.testing.expect(plan.blocks <= chip and plan.whole_tiles <= count);
                try std.testing.expect(plan.token_tiles * plan.shape.tokens >= rows);
                try std.testing.expect(plan.partialBytes() <= Context.scratch_bytes);
                const units = (count - plan.whole_tiles) * plan.segments;
                if (units == 0) continue;
                try std.testing.expect(plan.blocks * plan.run >= units);
                try std.testing.expectEqual(0, plan.whole_tiles % plan.token_tiles);
                try std.testing.expect(units / plan.segments * warps <= Context.ticket_count);
            }
        }
    }
}

test "few tiles are split as evenly as segments go" {
    const o: Problem = .{ .rows = 32, .columns = 4096, .k = 4096, .silu_mul = false };
    const plan = Plan.best(o, 132);
    try std.testing.expectEqual(0, plan.whole_tiles);
    try std.testing.expectEqual(2, plan.run);
    try std.testing.expectEqual(128, plan.blocks);
    const gate_up: Problem = .{ .rows = 32, .columns = 14336, .k = 4096, .silu_mul = true };
    try std.testing.expectEqual(224, Plan.best(gate_up, 132).whole_tiles);
}
