const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// KeepQueriesParams in src/rope.cu.
const Params = extern struct {
    q: u64,
    row_seq: u64,
    positions: u64,
    out: u64,
    rows: u32,
    ring: u32,
    units: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 48);
}

/// kKeepThreads and kKeepSpan in src/rope.cu.
const block = 256;
const units_per_block = 128;

/// Blocks of (sequence, part of a row).
pub fn keep_queries(ctx: *Context, desc: *const types.KeepQueriesDesc) errors.Error!void {
    const rows, const heads, const head_dim = desc.q.shape[0..3].*;
    const sequences, const ring = desc.out.shape[0..2].*;
    const elements = heads * head_dim;
    var params: Params = .{
        .q = desc.q.data,
        .row_seq = desc.row_seq.data,
        .positions = desc.positions.data,
        .out = desc.out.data,
        .rows = rows,
        .ring = ring,
        .units = elements,
    };
    if (access.wideRows(elements, &.{ params.q, params.out })) {
        params.units = elements / access.chunk;
        return ctx.launch(
            .{ .module = .rope, .name = "md_keep_queries_16" },
            .{ .grid = grid(sequences, params.units), .block = block },
            &params,
        );
    }
    return ctx.launch(
        .{ .module = .rope, .name = "md_keep_queries_2" },
        .{ .grid = grid(sequences, params.units), .block = block },
        &params,
    );
}

fn grid(sequences: u32, units: u32) [3]u32 {
    return .{ sequences, access.blocks(units, units_per_block), 1 };
}
