"""Methods that write weights as products of smaller matrices; one file each."""
