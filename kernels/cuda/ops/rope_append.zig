const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// RopeAppendParams in src/rope.cu.
const Params = extern struct {
    cache: types.KvCache,
    qkv: u64,
    rope: u64,
    rope_sink: u64,
    q: u64,
    q_sink: u64,
    row_seq: u64,
    positions: u64,
    block_table: u64,
    heads: u32,
    sequences: u32,
    max_pages: u32,
    layer: u32,
    vector: u32,
    reserved: u32 = 0,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 120);
}

const block = 128;

/// Blocks of (row, some of its heads): a thread takes 8 pairs of one head.
pub fn rope_append(ctx: *Context, desc: *const types.RopeAppendDesc) errors.Error!void {
    const rows, const heads, const head_dim = desc.q.shape[0..3].*;
    const units = (heads + 2 * desc.cache.kv_heads) * (head_dim / 2 / access.chunk);
    const rotated = [_]u64{
        desc.qkv.data,
        desc.rope.data,
        desc.rope_sink.data,
        desc.q.data,
        desc.q_sink.data,
    };
    return ctx.launch(
        .{ .module = .rope, .name = "md_rope_append" },
        .{ .grid = .{ rows, access.blocks(units, block), 1 }, .block = block },
        &Params{
            .cache = desc.cache,
            .qkv = desc.qkv.data,
            .rope = desc.rope.data,
            .rope_sink = desc.rope_sink.data,
            .q = desc.q.data,
            .q_sink = desc.q_sink.data,
            .row_seq = desc.row_seq.data,
            .positions = desc.positions.data,
            .block_table = desc.block_table.data,
            .heads = heads,
            .sequences = desc.block_table.shape[0],
            .max_pages = desc.block_table.shape[1],
            .layer = desc.layer,
            .vector = @intFromBool(access.wide(&rotated)),
        },
    );
}
