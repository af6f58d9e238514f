const std = @import("std");
const types = @import("../../abi/types.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const Context = @import("../context.zig").Context;

/// EmbeddingParams in src/elementwise.cu.
const Params = extern struct {
    table: u64,
    ids: u64,
    out: u64,
    columns: u32,
    ids_stride: u32,
    vocabulary: u32,
    units: u32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 40);
}

/// A block a row.
pub fn embedding(ctx: *Context, desc: *const types.EmbeddingDesc) errors.Error!void {
    const n = desc.table.shape[1];
    var params: Params = .{
        .table = desc.table.data,
        .ids = desc.ids.data,
        .out = desc.out.data,
        .columns = desc.ids.shape[1],
        .ids_stride = desc.ids_stride,
        .vocabulary = desc.table.shape[0],
        .units = n,
    };
    const grid = .{ desc.ids.shape[0] * desc.ids.shape[1], 1, 1 };
    if (access.wideRows(n, &.{ params.table, params.out })) {
        params.units = n / access.chunk;
        return ctx.launch(
            .{ .module = .elementwise, .name = "md_embedding_16" },
            .{ .grid = grid, .block = access.threads(params.units, 512) },
            &params,
        );
    }
    return ctx.launch(
        .{ .module = .elementwise, .name = "md_embedding_2" },
        .{ .grid = grid, .block = access.threads(n, 512) },
        &params,
    );
}
