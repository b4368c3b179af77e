// What differs between bfloat16 and float32. Included with BFLOAT16 set to 1 or 0 before the templates.
// A word is 32 bits along the inner axis: two bfloat16 or one float. K inner elements are `K / PER_WORD` words.
#undef NAME
#undef PER_WORD
#undef element
#undef dot
#undef dot_words
#undef widen
#undef narrow
#if BFLOAT16
#define NAME(name) name##_bf16
#define PER_WORD 2
#define element uint16_t
#define dot dot_bf16
#define dot_words dot_words_bf16
#define widen widen_bf16
#define narrow narrow_bf16
#else
#define NAME(name) name##_f32
#define PER_WORD 1
#define element float
#define dot dot_f32
#define dot_words dot_words_f32
#define widen load_f
#define narrow store_f
#endif
