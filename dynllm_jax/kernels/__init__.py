"""Code written the way it is for the sake of a compiler or a device."""
