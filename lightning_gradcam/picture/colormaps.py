"""The colours of maps."""

# 33 evenly spaced colours of each map, between which colours are linear. Within 2 of 255 of the originals:
# turbo by A. Mikhailov, 2019 (Apache-2.0), inferno by S. van der Walt and N. Smith, 2015 (CC0).
COLORMAPS = {
    "turbo": "30123b392a734040a14456c7466be3467ff64293ff37a7fa29bbec1dcdd818dcc31ee8b031f2994cf97e6bfd648aff4da3fd3c"
    "b8f735cced34dee037edd03af8c03afdae35fe982cfb8022f56817ec520fe04009d23105c02302ac1701950d017a0403",
    "inferno": "0000040403120b0724150b37210c4a2e0a5a3c09654a0c6b57106d63146e70196e7d1e6d89226a962766a32b61af315cbb37"
    "55c63e4dd14644db4f3be35932eb6528f1711ef67f14f98d0afb9c06fcab0ffbba1ff9ca32f5d949f2e865f3f586fcffa4",
}
# Of evidence against the target, beside each map: a colour that it does not have.
AGAINST = {"turbo": (255, 92, 233), "inferno": (86, 204, 255)}
