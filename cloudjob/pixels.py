"""What a pixel's number means everywhere: the bands and their order, digital numbers (DN), the classes of masks."""

BANDS = ("B04", "B03", "B02", "B08")  # red, green, blue, near infrared: the order of every array's band axis

# Images are uint16 digital numbers in one convention, whatever the processing baseline of their source:
# DN = round(reflectance * 10000) + 1000, so that snow above 1 and slightly negative water both survive.
SCALE, OFFSET = 1e-4, -0.1  # reflectance = DN * SCALE + OFFSET
EMPTY_DN = 0  # no data; valid numbers are 1 to 65535

# Masks are uint8. SHADOW is that of clouds; CIRRUS is thin; UNKNOWN is where the sources disagree.
CLEAR, CLOUD, SHADOW, CIRRUS, UNKNOWN, NO_DATA = 0, 1, 2, 3, 4, 255
HIDDEN = (CLOUD, SHADOW, CIRRUS)  # the classes under which the ground is reconstructed
CLASSES = {"clear": CLEAR, "cloud": CLOUD, "shadow": SHADOW, "cirrus": CIRRUS, "unknown": UNKNOWN, "no_data": NO_DATA}
REFERENCES = ("reference", "reference2", "reference3")  # the dates of a scene beside its cloudy and its clear one
