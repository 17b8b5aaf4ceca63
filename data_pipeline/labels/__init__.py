"""Label spaces with canonical names; unknown is a third state everywhere."""
