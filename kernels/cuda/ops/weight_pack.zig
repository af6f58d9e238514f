//! Rows of a weight into the layout that matrix products read. The zeros that pad a packed weight
//! are written too: those of a row with the row, those of the rows beyond n with the last row.
const std = @import("std");
const types = @import("../../abi/types.zig");
const check = @import("../../core/check.zig");
const errors = @import("../../core/errors.zig");
const access = @import("../access.zig");
const layout = @import("../layout.zig");
const context_mod = @import("../context.zig");
const Context = context_mod.Context;

const Error = errors.Error;

/// WeightPackParams in src/weight_pack.cu.
const Params = extern struct {
    source: u64,
    weight: u64,
    rows: u32,
    k: u32,
    row_offset: u32,
    vector: u32,
};

comptime {
    std.debug.assert(@sizeOf(Params) == 32);
}

pub fn weight_pack(ctx: *Context, desc: *const types.PackDesc) Error!void {
    const rows, const k = desc.source.shape[0..2].*;
    if (desc.file == 0) return pack(ctx, desc, desc.source.data, 0, rows);
    // The source lies in a mapped file: it goes to the device some rows at a time.
    const row_bytes = k * check.dtypeBytes(desc.source.dtype);
    if (row_bytes > Context.upload_bytes) return errors.fail(
        error.Unsupported,
        "expected rows of at most {d} bytes in a file, got {d}",
        .{ Context.upload_bytes, row_bytes },
    );
    const bytes: [*]const u8 = @ptrFromInt(desc.source.data);
    const rows_at_once: u32 = @intCast(@min(rows, Context.upload_bytes / row_bytes));
    var row: u32 = 0;
    while (row < rows) {
        const count = @min(rows_at_once, rows - row);
        const piece = bytes[@intCast(row * row_bytes)..][0..@intCast(count * row_bytes)];
        try pack(ctx, desc, try ctx.upload(piece), row, count);
        row += count;
    }
}

/// Packs `count` rows from the source's row `first` on, which stand at `address`.
fn pack(
    ctx: *Context,
    desc: *const types.PackDesc,
    address: u64,
    first: u32,
    count: u32,
) Error!void {
    const k = desc.weight.k;
    const row_offset = desc.row_offset + first;
    const end = row_offset + count;
    const padded_end = if (end == desc.weight.n)
        std.mem.alignForward(u32, end, layout.slab_rows)
    else
        end;
    const chunks = std.mem.alignForward(u32, k, layout.slab_k) / access.chunk;
    const block = access.threads(chunks, 256);
    const config: context_mod.LaunchConfig = .{
        .grid = .{ padded_end - row_offset, access.blocks(chunks, block), 1 },
        .block = block,
    };
    const params: Params = .{
        .source = address,
        .weight = desc.weight.data,
        .rows = count,
        .k = k,
        .row_offset = row_offset,
        .vector = @intFromBool(access.wideRows(k, &.{address})),
    };
    if (desc.source.dtype == .f32) {
        return ctx.launch(
            .{ .module = .weight_pack, .name = "md_weight_pack_f32" },
            config,
            &params,
        );
    }
    return ctx.launch(.{ .module = .weight_pack, .name = "md_weight_pack_bf16" }, config, &params);
}
