"""The regions of SEN12MS-CR and SEN12MS-CR-TS, and which train, validate and test (UnCRtainTS, Ebel et al. 2023).

The published loader of SEN12MS-CR looks whether a region's name is *in* a path: s1_1 trains, and with it s1_106, which
is tested on. Here a region is its own name and nothing else.
"""

SEASONS = {
    "ROIs1158": "ROIs1158_spring",
    "ROIs1868": "ROIs1868_summer",
    "ROIs1970": "ROIs1970_fall",
    "ROIs2017": "ROIs2017_winter",
}


def _of(**numbers: str) -> frozenset[str]:
    """Names of regions: season_number."""
    return frozenset(f"{season}_{number}" for season, text in numbers.items() for number in text.split())


PAIRS: dict[str, frozenset[str]] = {  # SEN12MS-CR
    "train": _of(
        ROIs1158="9 1 124 40 101 21 134 145 141 66 8 26 77 113 100 117 119 6 58 120 110 126 115 121 39 109 63 75 132 "
        "128 142 15 45 97 147",
        ROIs1868="90 87 25 124 114 135 40 101 42 31 36 139 56 133 55 43 113 76 123 143 93 125 89 120 126 72 115 121 "
        "146 140 95 102 7 11 132 15 137 4 27 147 86 47 100",
        ROIs1970="3 22 148 107 1 114 135 40 42 31 149 64 28 144 57 35 133 30 134 141 112 116 37 26 77 100 83 71 93 119 "
        "104 136 6 41 125 91 131 120 110 19 14 81 39 109 33 88 11 128 142 122 4 27 147 85 82 105",
        ROIs2017="68 25 62 135 42 64 21 55 112 116 8 59 49 104 81 146 75 94 102 61 47",
    ),
    "val": _of(ROIs1158="17", ROIs1868="19 80 127 17", ROIs1970="65", ROIs2017="22 107 130 84"),
    "test": _of(ROIs1158="106 123 140 31 44", ROIs1868="119 73", ROIs1970="139", ROIs2017="108 63"),
}

SERIES: dict[str, frozenset[str]] = {  # SEN12MS-CR-TS
    "train": _of(
        ROIs1868="36 56 85 114 121 126 139 143",
        ROIs1970="21 35 40 57 71 82 83 91 112 116 119 128 133 135 142 144 149",
        ROIs2017="8 25 49 61 69 75 115 116 130 146",
    ),
    "val": _of(ROIs1868="127 17", ROIs1970="65", ROIs2017="22 117"),
    "test": _of(ROIs1158="106", ROIs1868="119 73 100 142", ROIs1970="139 132 20", ROIs2017="108 63 32 103 140"),
}


def split_of(region: str, table: dict[str, frozenset[str]]) -> str | None:
    """train, val or test; None for a region in no list."""
    return next((split for split, regions in table.items() if region in regions), None)
