//! libmagicdec: exports what the manifest lists, and nothing else.
const builtin = @import("builtin");
const std = @import("std");
const manifest = @import("abi/manifest.zig");
const ops = @import("api/ops.zig");

const modules = .{
    @import("api/context.zig"),
    @import("api/memory.zig"),
    @import("api/stream.zig"),
    @import("api/graph.zig"),
    @import("api/file.zig"),
    ops,
};

comptime {
    @setEvalBranchQuota(100_000);
    if (!std.mem.eql(u8, builtin.zig_version_string, "0.16.0")) {
        @compileError(
            "expected Zig 0.16.0, got " ++ builtin.zig_version_string ++ ": bun run build fetches the right one",
        );
    }
    for (manifest.functions) |row| @export(find(row), .{ .name = row.name });
    for (manifest.ops) |op| @export(&ops.function(op), .{ .name = "md_" ++ op.name });
    for (modules) |module| {
        for (@typeInfo(module).@"struct".decls) |decl| requireRow(decl.name);
    }
}

/// The function of this row, whose type must be the row's.
fn find(comptime row: manifest.Function) *const row.Type {
    for (modules) |module| {
        if (@hasDecl(module, row.name)) return &@field(module, row.name);
    }
    @compileError(row.name ++ " is in manifest.zig but in no module of api/");
}

fn requireRow(comptime name: []const u8) void {
    if (!std.mem.startsWith(u8, name, "md_")) return;
    for (manifest.functions) |row| if (std.mem.eql(u8, row.name, name)) return;
    @compileError(name ++ " is not in manifest.zig");
}
