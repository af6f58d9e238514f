//! The kernel files, by name: build.zig compiles src/<name>.cu to one image for each.

pub const Module = enum {
    elementwise,
    rope,
    snapkv,
    sampling,
    weight_pack,
    linear_portable,
    attention_portable,
    probe,
    linear_skinny,
    linear_cluster,
    linear_tiled,
    attention_decode,
    attention_prefill,

    /// Whether it uses what only Hopper has: the copy engine, barriers in shared memory, wgmma.
    pub fn needsHopper(self: Module) bool {
        return switch (self) {
            .linear_skinny,
            .linear_cluster,
            .linear_tiled,
            .attention_decode,
            .attention_prefill,
            => true,
            else => false,
        };
    }
};
